"""What a quantizer does otherwise when its batch is split over the devices of a mapped axis."""

import flax.linen as nn
import jax
from jaxtyping import Array

from vqjax.errors import UserError


def mapped_axis(module: nn.Module) -> str | None:
    """The axis of the statistics; none in ``init``, which runs outside of the mapped function."""
    return None if module.is_initializing() else module.axis_name


def draw_key(module: nn.Module, cause: str) -> Array:
    """A key of the stream ``quantizer``, another one on each device of a mapped axis.

    Args:
      module: A quantizer with the field ``axis_name``.
      cause: What random numbers are drawn for, for the message where there is no such stream.

    Returns:
      A random key.

    Raises:
      UserError: No stream ``quantizer``.
    """
    if not module.has_rng("quantizer"):
        raise UserError(f"{cause} draws random numbers: pass rngs={{'quantizer': key}} to apply.")
    key = module.make_rng("quantizer")
    return key if module.axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(module.axis_name))
