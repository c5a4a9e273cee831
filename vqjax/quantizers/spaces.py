"""Into the space of the codes and back: projection, heads, and the unit sphere of the cosine metric."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.norms import normalize
from vqjax.quantizers.projection import project


def lookup_space(vq: nn.Module, z: Float[Array, "*batch dim"]) -> Float[Array, "*tokens code_dim"]:
    """Takes inputs to where codes live, in float32.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      z: Inputs.

    Returns:
      Vectors; with several heads their axis comes before the last one.
    """
    z = z.astype(jnp.float32)
    if vq.code_dim is not None:
        z = project(vq, "project_in", z)
    if vq.heads > 1:
        z = z.reshape(*z.shape[:-1], vq.heads, z.shape[-1] // vq.heads)
    return normalize(z) if vq.metric == "cosine" else z


def output_space(vq: nn.Module, vectors: Float[Array, "*tokens code_dim"]) -> Float[Array, "*batch dim"]:
    """Takes vectors from where codes live to where the inputs came from.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      vectors: As :func:`lookup_space` returns them.

    Returns:
      Vectors of the input's dimension.
    """
    if vq.heads > 1:
        vectors = vectors.reshape(*vectors.shape[:-2], vq.heads * vectors.shape[-1])
    return project(vq, "project_out", vectors) if vq.code_dim is not None else vectors


def mask_of_heads(vq: nn.Module, mask: Bool[Array, "*batch"] | None) -> Bool[Array, "*tokens"] | None:
    """One value per token and head."""
    if mask is None or vq.heads == 1:
        return mask
    return jnp.broadcast_to(mask[..., None], (*mask.shape, vq.heads))
