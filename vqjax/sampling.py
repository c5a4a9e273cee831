"""Codes drawn at random, the nearer the likelier."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.chunks import LARGEST_CHUNK
from vqjax.similarity import similarity


def sample_codes(
    key: Key[Array, ""],
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    temperature: float,
    metric: str = "euclidean",
) -> Int[Array, "*batch"]:
    r"""Draws a code for each vector (Gumbel-max).

    .. math:: p(k) = \mathrm{softmax}_k(s_k/\tau),\quad s_k = -|z - e_k| \ \text{or the cosine}

    Args:
      key: Random key.
      z: Vectors, any leading axes.
      codes: The codebook.
      temperature: :math:`\tau`, above 0; towards 0 the nearest code is drawn.
      metric: ``"euclidean"`` or ``"cosine"`` (pass unit vectors).

    Returns:
      int32 indices. No gradient passes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [1.0]])
      >>> drawn = sample_codes(jax.random.key(0), jnp.zeros((1000, 1)), codes, temperature=1.0)
      >>> round(float(drawn.mean()), 1)  # 1 / (1 + e)
      0.3

    Source: vector-quantize-pytorch (``stochastic_sample_codes``); Takida et al., 2022 (arXiv 2205.07547) on why.
    """
    z, codes = jax.lax.stop_gradient((z, codes))
    tokens = z.reshape(-1, z.shape[-1])

    def draw(key_and_token: tuple[Array, Array]) -> Int[Array, ""]:
        key, token = key_and_token
        return jax.random.categorical(key, similarity(token[None], codes, metric)[0] / temperature)

    at_once = max(1, min(tokens.shape[0], LARGEST_CHUNK // codes.shape[0]))
    drawn = jax.lax.map(draw, (jax.random.split(key, tokens.shape[0]), tokens), batch_size=at_once)
    return drawn.astype(jnp.int32).reshape(z.shape[:-1])
