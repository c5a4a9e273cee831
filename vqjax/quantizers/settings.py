"""Other values for the numbers of a quantizer, also traced ones: what is annealed during training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vqjax.errors import UserError, did_you_mean


def replace_settings(part: Any, settings: Mapping[str, Any]) -> Any:
    """Return a copy of a quantizer with other values of some fields.

    The values may be traced: those of a schedule at the step of a compiled training step, for example.

    Args:
      part: A quantizer, or a codebook, regularizer or other part of one.
      settings: Values by the name of the field, dotted in parts: ``"codebook.decay"``,
        ``"quantizer.commitment_weight"`` of a composite, ``"regularizers.diversity.weight"``.

    Returns:
      The copy, which has the same variables.

    Raises:
      UserError: There is no such field, or the value is out of range.

    Example:
      >>> import jax
      >>> from vqjax import VectorQuantizer
      >>> vq, z = VectorQuantizer(num_codes=16), jax.random.normal(jax.random.key(0), (8, 4))
      >>> variables = vq.init(jax.random.key(1), z)
      >>> @jax.jit
      ... def loss(weight):
      ...   annealed = replace_settings(vq, {"commitment_weight": weight})
      ...   return annealed.apply(variables, z, train=False).loss
      >>> bool(loss(0.5) == 2 * loss(0.25))
      True
    """
    for name, value in settings.items():
        part = _replace(part, name, value)
    return part


def _replace(part: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    if isinstance(part, tuple):
        names = [item.name for item in part]
        if first not in names or not rest:
            raise UserError(f"{name} must name a field of one of {names}; {did_you_mean(first, names)}.")
        return tuple(_replace(item, rest, value) if item.name == first else item for item in part)
    fields = [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    if first not in fields:
        known = did_you_mean(first, fields) if fields else "leave it out"
        raise UserError(f"{first} is not a field of {type(part).__name__}; {known}")
    value = _replace(getattr(part, first), rest, value) if rest else value
    return part.clone(**{first: value}) if isinstance(part, nn.Module) else dataclasses.replace(part, **{first: value})
