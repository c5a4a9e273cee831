"""What the quantizers refuse, and why."""

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator
from vqjax.quantizers.ema import EMA


def check_arguments(vq: nn.Module) -> None:
    """Refuses constructor arguments that are out of range or have no effect with the others.

    Args:
      vq: A ``VectorQuantizer``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """

    check_flags(vq)
    require = requirement(vq)
    _check_parts(vq, require)
    require(
        is_count(vq.num_codes) and vq.num_codes < 2**31,
        "num_codes",
        "use a whole number of at least 1.",
    )
    require(vq.metric in ("euclidean", "cosine"), "metric", "use 'euclidean' or 'cosine'.")
    require(
        isinstance(vq.codebook_update, EMA) or vq.codebook_update in ("ema", "gradient", "none"),
        "codebook_update",
        "use 'ema', 'gradient', 'none' or vqjax.quantizers.EMA(...).",
    )
    get_estimator(vq.estimator)
    require(is_number(vq.decay) and 0 <= vq.decay < 1, "decay", "use a number in [0, 1), such as 0.99.")
    require(is_weight(vq.commitment_weight), "commitment_weight", "use a finite number of at least 0, such as 0.25.")
    require(
        is_count(vq.codebook_shards) and vq.num_codes % vq.codebook_shards == 0,
        "codebook_shards",
        f"use a whole number that divides num_codes={vq.num_codes}.",
    )
    require(
        vq.codebook_shards == 1 or not vq.separate_codebooks,
        "codebook_shards",
        "several codebooks (separate_codebooks=True) are not divided. Use 1.",
    )
    require(vq.search in ("chunks", "hopper"), "search", "use 'chunks' or 'hopper'.")
    divided = vq.codebook_shards > 1 or vq.separate_codebooks
    require(vq.search == "chunks" or not divided, "search", "the kernel takes one codebook on one device.")
    _check_replacement(vq, require)
    _check_heads(vq, require)
    _check_learned_codes(vq, require)
    _check_lookup(vq, require)


def check_flags(module: nn.Module) -> None:
    """Refuses what is neither true nor false where a module's field says so, and axes without a name.

    Args:
      module: Any quantizer.

    Raises:
      UserError: The first such field and its value; the text "False" would count as true.
    """
    require = requirement(module)
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.type is bool:
            require(isinstance(value, bool | np.bool_), field.name, "use True or False.")
        if field.name == "axis_name":
            named = value is None or isinstance(value, str)
            require(named, field.name, "use the name that pmap or shard_map gave the axis, or None.")


def learns_codes(vq: nn.Module) -> bool:
    """Whether a gradient moves the codes that are looked up: their own, or that of their transform."""
    transform = vq.codebook_transform
    return vq.codebook_update == "gradient" or (transform is not None and not hasattr(transform, "update"))


def check_template(module: nn.Module) -> None:
    """Refuses templates of levels that are no quantizers by a codebook.

    Args:
      module: Has the field ``quantizer``.

    Raises:
      UserError: Its template has no options of a ``VectorQuantizer``.
    """
    template = module.quantizer
    known = isinstance(template, nn.Module) and {"num_codes", "codebook_transform"} <= {
        field.name for field in dataclasses.fields(template)
    }
    requirement(module)(known, "quantizer", "use a VectorQuantizer(num_codes=...), which says what a level is.")


def takes_condition(transform: nn.Module | None) -> bool:
    """Whether a codebook transform gives each token a codebook of its own."""
    return isinstance(transform, nn.Module) and "condition" in inspect.signature(type(transform).__call__).parameters


def _check_parts(vq: nn.Module, require: Callable) -> None:
    """What is no number; names of classes, and classes themselves, belong to configs."""
    transform, regularizers = vq.codebook_transform, vq.regularizers
    require(
        transform is None or isinstance(transform, nn.Module),
        "codebook_transform",
        "use a Flax module such as LinearTransform(), or None.",
    )
    require(callable(vq.codebook_init), "codebook_init", "use an initializer such as nn.initializers.normal(1.0).")
    known = isinstance(regularizers, tuple) and all(hasattr(r, "needs_learned_codes") for r in regularizers)
    require(known, "regularizers", "use a tuple of regularizers such as (Diversity(0.1),).")


def _check_replacement(vq: nn.Module, require: Callable) -> None:
    require(
        is_number(vq.dead_code_threshold) and 0 <= vq.dead_code_threshold < 1,
        "dead_code_threshold",
        "use a fraction of the average use, in [0, 1).",
    )
    require(
        vq.replace_unused_after is None or is_count(vq.replace_unused_after),
        "replace_unused_after",
        "use a whole number of batches, or None.",
    )
    without_inverse = vq.codebook_transform is not None and not hasattr(vq.codebook_transform, "to_base")
    for name in ("replace_dead_codes", "replace_unused_after"):
        wanted = getattr(vq, name) not in (False, None)
        frozen = vq.codebook_update == "none"
        require(not (wanted and frozen), name, "codebook_update='none' freezes the codebook. Choose one of the two.")
        require(
            not (wanted and without_inverse),
            name,
            f"a token cannot become a code through codebook_transform={type(vq.codebook_transform).__name__}, which "
            "has no inverse (method to_base). Choose one of the two.",
        )


def _check_heads(vq: nn.Module, require: Callable) -> None:
    require(is_count(vq.heads), "heads", "use a whole number of at least 1.")
    require(vq.code_dim is None or is_count(vq.code_dim), "code_dim", "use a whole number of at least 1, or None.")
    require(
        not vq.separate_codebooks or vq.heads > 1,
        "heads",
        "one head has one codebook anyway. Use at least 2, or separate_codebooks=False.",
    )


def _check_learned_codes(vq: nn.Module, require: Callable) -> None:
    by_gradient = "only codes that are learned by gradient (codebook_update='gradient', or a codebook_transform with"
    by_gradient += " parameters) have this. Leave it out."
    require(vq.codebook_weight is None or learns_codes(vq), "codebook_weight", by_gradient)
    require(
        vq.codebook_weight is None or is_weight(vq.codebook_weight), "codebook_weight", "use a number of at least 0."
    )
    require(is_weight(vq.synchronization), "synchronization", "use a finite number of at least 0, such as 0.2.")
    require(vq.synchronization == 0 or learns_codes(vq), "synchronization", by_gradient)
    for regularizer in vq.regularizers:
        require(
            learns_codes(vq) or not regularizer.needs_learned_codes,
            "regularizers",
            f"moving averages and frozen codebooks would undo {type(regularizer).__name__}: {by_gradient}",
        )
    moving = vq.codebook_update == "ema" or isinstance(vq.codebook_update, EMA)
    has_parameters = vq.codebook_transform is not None and not hasattr(vq.codebook_transform, "update")
    require(
        not (moving and has_parameters),
        "codebook_transform",
        "moving averages and the gradient of a transform would both move the codes. Use codebook_update='none' or "
        "'gradient' with it.",
    )
    require(
        not (vq.metric == "cosine" and hasattr(vq.codebook_transform, "update")),
        "codebook_transform",
        "running statistics move codes off the unit sphere of metric='cosine'. Use metric='euclidean'.",
    )


def _check_lookup(vq: nn.Module, require: Callable) -> None:
    estimator = get_estimator(vq.estimator)
    require(is_weight(vq.sampling_temperature), "sampling_temperature", "use 0, or a finite number above 0.")
    require(
        vq.sampling_temperature == 0 or not chooses_codes(estimator),
        "sampling_temperature",
        f"estimator={vq.estimator!r} chooses the codes itself. Choose one of the two.",
    )
    if takes_condition(vq.codebook_transform):
        conditioned = "a codebook per token (codebook_transform with a condition) cannot be combined with it."
        require(vq.heads == 1, "heads", conditioned)
        require(vq.sampling_temperature == 0, "sampling_temperature", conditioned)
        require(not chooses_codes(estimator), "estimator", conditioned)
        require(not vq.regularizers, "regularizers", conditioned)


def check_input(z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> None:
    """Refuses tokens and masks that cannot be looked up.

    Args:
      z: The tokens.
      mask: True for valid tokens, if given.

    Raises:
      UserError: What is wrong, and what to pass.
    """
    for name, value in (("z", z), ("mask", mask)):
        if not hasattr(value, "dtype") and (name == "z" or value is not None):
            raise UserError(f"{name} is of type {type(value).__name__}: pass an array.")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise UserError(f"z has dtype {z.dtype}: pass floating-point vectors (decode takes indices).")
    if z.ndim < 1 or z.shape[-1] < 1:
        raise UserError(f"z has shape {z.shape}: its last axis has to hold at least one feature.")
    if mask is not None and (mask.shape != z.shape[:-1] or mask.dtype != jnp.bool_):
        raise UserError(
            f"mask is {mask.dtype}{list(mask.shape)}: pass bool{list(z.shape[:-1])}, one value per token of z."
        )


def check_given(vq: nn.Module, z: Array, indices: Array | None, update_weights: Array | None) -> None:
    """Refuses indices and weights that do not fit the tokens and the codebook.

    Args:
      vq: A ``VectorQuantizer``.
      z: The tokens.
      indices: Codes chosen elsewhere, if given.
      update_weights: One per code, if given.

    Raises:
      UserError: What is wrong, and what to pass.
    """
    expected = z.shape[:-1] if vq.heads == 1 else (*z.shape[:-1], vq.heads)
    if indices is not None and (indices.shape != expected or not jnp.issubdtype(indices.dtype, jnp.integer)):
        raise UserError(
            f"indices is {indices.dtype}{list(indices.shape)}: pass integers{list(expected)}, one per token."
        )
    expected = (vq.heads, vq.num_codes) if vq.separate_codebooks else (vq.num_codes,)
    if update_weights is not None and update_weights.shape not in (expected, expected[-1:]):
        raise UserError(f"update_weights has shape {update_weights.shape}: pass one weight per code, {expected}.")


def is_number(value: object) -> bool:
    """Whether a value is a real number; booleans are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_weight(value: object) -> bool:
    """Whether a value is a finite number of at least zero."""
    return is_number(value) and 0 <= value < math.inf


def is_count(value: object) -> bool:
    """Whether a value is a whole number of at least one."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def requirement(module: nn.Module) -> Callable[[bool, str, str], None]:
    """A function ``require(valid, name, allowed)`` that refuses the module's field ``name`` where it is not valid."""
    return functools.partial(_require, module)


def _require(module: nn.Module, valid: bool, name: str, allowed: str) -> None:
    if not valid:
        value = getattr(module, name)
        # A module shows all its attributes, line by line.
        shown = f"{type(value).__name__}(...)" if isinstance(value, nn.Module) else repr(value)
        raise UserError(f"{name}={shown} is not allowed: {allowed}")
