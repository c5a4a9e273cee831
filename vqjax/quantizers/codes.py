"""The codes that are looked up: the stored ones, transformed and, for cosine, of unit length."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.errors import UserError
from vqjax.norms import normalize
from vqjax.quantizers.checks import takes_condition
from vqjax.quantizers.variables import stored_codes

Condition = Float[Array, "*batch features"] | None


def codes_of(vq: nn.Module, condition: Condition = None) -> Float[Array, "*codebooks codes dim"]:
    """Returns all codes.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      condition: One vector per token, where the transform takes one.

    Returns:
      One codebook; one per head, or one per token, along leading axes where there are such.
    """
    codes = stored_codes(vq)
    if vq.codebook_transform is not None:
        _check_condition(vq.codebook_transform, condition)
        codes = vq.codebook_transform(codes) if condition is None else vq.codebook_transform(codes, condition)
    elif condition is not None:
        raise UserError("condition is given, but there is no codebook_transform that takes one. Leave it out.")
    # Moving averages and frozen codes are stored at unit length.
    may_be_longer = vq.codebook_update == "gradient" or vq.codebook_transform is not None
    return normalize(codes) if vq.metric == "cosine" and may_be_longer else codes


def codes_at(
    vq: nn.Module, indices: Int[Array, "*indices"], condition: Condition = None
) -> Float[Array, "*indices dim"]:
    """Returns the codes of indices.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      indices: In ``[0, num_codes)``; with several heads they are the last axis.
      condition: One vector per token, where the transform takes one.

    Returns:
      One vector per index.
    """
    if condition is not None:
        _check_condition(vq.codebook_transform, condition)
        chosen = jnp.expand_dims(stored_codes(vq)[indices], -2)
        chosen = jnp.squeeze(vq.codebook_transform(chosen, condition), -2)
        return normalize(chosen) if vq.metric == "cosine" else chosen
    codes = codes_of(vq)
    return codes[jnp.arange(vq.heads), indices] if vq.separate_codebooks else codes[indices]


def _check_condition(transform: nn.Module | None, condition: Condition) -> None:
    if takes_condition(transform) != (condition is not None):
        needed = (
            "needs a condition: pass condition, one vector per token."
            if condition is None
            else ("takes no condition. Leave it out.")
        )
        raise UserError(f"codebook_transform={type(transform).__name__} {needed}")
