"""Codes drawn from a softmax, and its gradient."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Vectors, with_gradient_of

# Logits held at once, in float32: 32 MiB. Larger batches go through in parts that are recomputed backwards.
_LOGITS = 2**23
# Longer vectors are shrunk before they are multiplied: their squares leave float32, and among such distances the
# softmax has long been one-hot.
_LONGEST = 1e15


def gumbel_softmax(
    z: Vectors, codes: Float[Array, "codes dim"], *, key: Key[Array, ""], temperature: float = 1.0
) -> tuple[Vectors, Int[Array, "*batch"]]:
    r"""Straight-through Gumbel-softmax: draws a code, with the gradient of the soft mixture of all.

    .. math::
      p = \mathrm{softmax}\big((-|z - e_k|^2 + g_k)/\tau\big),\quad i = \arg\max_k p_k,\quad
      q' = e_i + \Big(\sum_k p_k e_k - \mathrm{sg}\sum_k p_k e_k\Big),\quad g_k \sim \mathrm{Gumbel}

    The gradient reaches ``z`` and every code.

    Args:
      z: Encoder vectors, any leading axes.
      codes: The codebook.
      key: Random key of the Gumbel noise.
      temperature: :math:`\tau`, above 0.

    Returns:
      The codes drawn, bit for bit, and their indices.

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
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature={temperature!r} is not allowed: use a finite number above 0, such as 1.0.")
    wide = codes.astype(jnp.float32)
    center = jax.lax.stop_gradient(jnp.mean(wide, axis=0))
    centered = wide - center[None]
    code_shrink = _shrink(centered)
    compared = code_shrink * centered
    half_squares = 0.5 * jnp.sum(jnp.square(compared), axis=-1)

    def draw(key_and_token: tuple[Array, Array]) -> tuple[Float[Array, " dim"], Int[Array, ""]]:
        key, token = key_and_token
        token = code_shrink * (token - center)
        shrink = _shrink(token)
        products = jnp.matmul(compared, shrink * token, precision=jax.lax.Precision.HIGHEST)
        scores = 2 * (products - shrink * half_squares)
        logits = (scores + jax.random.gumbel(key, half_squares.shape)) / temperature
        soft = jnp.matmul(jax.nn.softmax(logits), centered, precision=jax.lax.Precision.HIGHEST)
        return soft, jnp.argmax(logits).astype(jnp.int32)

    tokens = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    at_once = max(1, min(tokens.shape[0], _LOGITS // codes.shape[0]))
    keys = jax.random.split(key, tokens.shape[0])
    soft, indices = jax.lax.map(jax.checkpoint(draw), (keys, tokens), batch_size=at_once)
    indices = indices.reshape(z.shape[:-1])
    return with_gradient_of(codes[indices], soft.reshape(z.shape)), indices


def _shrink(x: Float[Array, "..."]) -> Float[Array, ""]:
    return jax.lax.stop_gradient(jnp.minimum(1.0, _LONGEST / jnp.max(jnp.abs(x))))
