"""The straight-through Gumbel-softmax estimator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Vectors, with_gradient_of
from vqjax.functional.chunks import chunk_size
from vqjax.functional.numbers import Number, is_positive
from vqjax.functional.search import center_of
from vqjax.functional.sharding import with_automatic_axes

# Longer vectors are shrunk before they are multiplied: their squares leave float32, and at such distances the softmax
# is one-hot anyway.
_MAX_LENGTH = 1e15


@with_automatic_axes(like="z")
def gumbel_softmax(
    z: Vectors, codes: Float[Array, "codes dim"], *, key: Key[Array, ""], temperature: Number = 1.0
) -> tuple[Vectors, Int[Array, "*batch"]]:
    r"""Draw a code, with the gradient of the soft mixture of all codes.

    .. math::
      p = \mathrm{softmax}\big((-|z - e_k|^2 + g_k)/\tau\big),\quad i = \arg\max_k p_k,\quad
      q' = e_i + \Big(\sum_k p_k e_k - \mathrm{sg}\sum_k p_k e_k\Big),\quad g_k \sim \mathrm{Gumbel}

    The gradient reaches ``z`` and every code. Logits are computed in chunks of tokens, again in the backward pass.

    Args:
      z: Latents, any leading axes.
      codes: The codebook.
      key: Random key of the Gumbel noise.
      temperature: :math:`\tau`, above 0.

    Returns:
      The codes drawn, bit for bit, and their int32 indices.

    Raises:
      UserError: ``temperature`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [100.0]])
      >>> quantized, indices = gumbel_softmax(jnp.array([[1.0], [98.0]]), codes, key=jax.random.key(0))
      >>> quantized[:, 0].tolist(), indices.tolist()
      ([0.0, 100.0], [0, 1])

    Source: Jang et al., ICLR 2017 (arXiv 1611.01144); a baseline in Table 1 of Fifty et al., ICLR 2025.
    """
    if not is_positive(temperature):
        raise UserError(f"temperature must be a finite number above 0, got {temperature!r}; use 1.0 for no scaling.")
    wide = codes.astype(jnp.float32)
    center = center_of(wide)
    centered = wide - center[None]
    code_shrink = _shrink(centered)
    shrunk = code_shrink * centered
    half_squares = 0.5 * jnp.sum(jnp.square(shrunk), axis=-1)

    def draw(key_and_token: tuple[Array, Array]) -> tuple[Float[Array, " dim"], Int[Array, ""]]:
        key, token = key_and_token
        token = code_shrink * (token - center)
        shrink = _shrink(token)
        products = jnp.matmul(shrunk, shrink * token, precision=jax.lax.Precision.HIGHEST)
        # Minus the squared distances, less the constant |z|^2, which the softmax does not see.
        scores = 2 * (products - shrink * half_squares)
        logits = (scores + jax.random.gumbel(key, half_squares.shape, jnp.float32)) / temperature
        soft = jnp.matmul(jax.nn.softmax(logits), centered, precision=jax.lax.Precision.HIGHEST)
        return soft, jnp.argmax(logits).astype(jnp.int32)

    tokens = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    tokens_per_chunk = max(1, min(tokens.shape[0], chunk_size(codes.shape[0])))
    keys = jax.random.split(key, tokens.shape[0])
    soft, indices = jax.lax.map(jax.checkpoint(draw), (keys, tokens), batch_size=tokens_per_chunk)
    indices = indices.reshape(z.shape[:-1])
    return with_gradient_of(codes[indices], soft.reshape(z.shape)), indices


def _shrink(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the factor that brings the largest component to at most ``_MAX_LENGTH``."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)))
    return jnp.minimum(1.0, _MAX_LENGTH / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny))
