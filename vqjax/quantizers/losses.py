"""The losses of a ``VectorQuantizer``."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.metrics import masked_mean
from vqjax.quantizers.checks import learns_codes
from vqjax.quantizers.codes import codes_of
from vqjax.quantizers.devices import mapped_axis
from vqjax.quantizers.learning import per_group
from vqjax.regularizers import Regularizer

Vectors = Float[Array, "*tokens dim"]
Mask = Bool[Array, "*tokens"] | None


def distance(vq: nn.Module, x: Vectors, y: Vectors, mask: Mask) -> Float[Array, ""]:
    """The mean squared difference over unmasked tokens and dimensions."""
    return masked_mean(jnp.mean(jnp.square(x - y), axis=-1), mask, mapped_axis(vq))


def losses(
    vq: nn.Module, vectors: Vectors, chosen: Vectors, counts: Float[Array, "*codebooks codes"], mask: Mask
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the weighted loss, and each term without its weight by name.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      vectors: Tokens in the space of the lookup.
      chosen: Their codes, with gradient.
      counts: Tokens per code in the global batch.
      mask: True for the tokens that count.

    Returns:
      A scalar, and scalars by name.
    """
    commitment = distance(vq, vectors, jax.lax.stop_gradient(chosen), mask)
    codebook = distance(vq, jax.lax.stop_gradient(vectors), chosen, mask)
    loss = vq.commitment_weight * commitment
    if learns_codes(vq):
        loss += (1.0 if vq.codebook_weight is None else vq.codebook_weight) * codebook
    metrics = {"quantization_error": commitment, "commitment_loss": commitment, "codebook_loss": codebook}
    for regularizer in vq.regularizers:
        metrics[regularizer.name] = _regularize(vq, regularizer, vectors, counts, mask)
        loss += regularizer.weight * metrics[regularizer.name]
    return loss, metrics


def _regularize(
    vq: nn.Module, regularizer: Regularizer, vectors: Vectors, counts: Array, mask: Mask
) -> Float[Array, ""]:
    value = partial(regularizer, axis_name=mapped_axis(vq), metric=vq.metric)
    if not vq.separate_codebooks:
        return value(vectors, codes_of(vq), counts, mask)
    tokens, token_mask = per_group(vq, vectors, mask)
    of_heads = jax.vmap(value, in_axes=(0, 0, 0, None if mask is None else 0))
    return jnp.mean(of_heads(tokens, codes_of(vq), counts, token_mask))
