"""What the quantizers refuse, and why."""

import math
import numbers

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.estimators import get_estimator


def check_arguments(vq: nn.Module) -> None:
    """Refuses constructor arguments that are out of range or have no effect with the others.

    Args:
      vq: A ``VectorQuantizer``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """

    def require(valid: bool, name: str, allowed: str) -> None:
        if not valid:
            raise UserError(f"{name}={getattr(vq, name)!r} is not allowed: {allowed}")

    require(
        isinstance(vq.num_codes, int | np.integer) and 1 <= vq.num_codes < 2**31,
        "num_codes",
        "use a whole number of at least 1.",
    )
    require(vq.metric in ("euclidean", "cosine"), "metric", "use 'euclidean' or 'cosine'.")
    require(
        vq.codebook_update in ("ema", "gradient", "none"),
        "codebook_update",
        "use 'ema', 'gradient' or 'none'.",
    )
    get_estimator(vq.estimator)
    require(_is_number(vq.decay) and 0 <= vq.decay < 1, "decay", "use a number in [0, 1), such as 0.99.")
    require(_is_weight(vq.commitment_weight), "commitment_weight", "use a finite number of at least 0, such as 0.25.")
    require(
        vq.codebook_weight is None or vq.codebook_update == "gradient",
        "codebook_weight",
        "it weighs the codebook loss, which only codebook_update='gradient' has. Leave it out.",
    )
    require(
        vq.codebook_weight is None or _is_weight(vq.codebook_weight),
        "codebook_weight",
        "use a number of at least 0.",
    )
    require(
        _is_number(vq.dead_code_threshold) and 0 <= vq.dead_code_threshold < 1,
        "dead_code_threshold",
        "use a fraction of the average use, in [0, 1).",
    )
    require(
        not vq.replace_dead_codes or vq.codebook_update != "none",
        "replace_dead_codes",
        "codebook_update='none' freezes the codebook. Choose one of the two.",
    )


def check_input(z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> None:
    """Refuses tokens and masks that cannot be looked up.

    Args:
      z: The tokens.
      mask: True for valid tokens, if given.

    Raises:
      UserError: What is wrong, and what to pass.
    """
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise UserError(f"z has dtype {z.dtype}: pass floating-point vectors (decode takes indices).")
    if z.ndim < 1 or z.shape[-1] < 1:
        raise UserError(f"z has shape {z.shape}: its last axis has to hold at least one feature.")
    if mask is not None and (mask.shape != z.shape[:-1] or mask.dtype != jnp.bool_):
        raise UserError(
            f"mask is {mask.dtype}{list(mask.shape)}: pass bool{list(z.shape[:-1])}, one value per token of z."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_weight(value: object) -> bool:
    return _is_number(value) and 0 <= value < math.inf
