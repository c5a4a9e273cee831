"""The quantization error as noise."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vqjax.estimators.jacobian import Vectors, length
from vqjax.norms import length_and_direction


def noise_substitution(z: Vectors, q: Vectors, *, key: Key[Array, ""]) -> Vectors:
    r"""NSVQ: replaces the quantization error by noise of the same length.

    .. math:: q' = z + |z - q|\, n/|n|,\quad n \sim N(0, I)

    The gradient reaches ``z``, and the codes through the length of the error alone.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.
      key: Random key of the noise.

    Returns:
      A random point at the code's distance from ``z``, of ``q``'s dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([3.0, 4.0]), jnp.array([0.0, 0.0])
      >>> moved = noise_substitution(z, q, key=jax.random.key(0))
      >>> print(jnp.linalg.norm(moved - z).round(4))
      5.0

    Source: Vali and Bäckström, IEEE Access 2022 ("NSVQ").
    """
    dtype = q.dtype
    z, q = z.astype(jnp.float32), q.astype(jnp.float32)
    _, direction = length_and_direction(jax.random.normal(key, z.shape))
    return (z + length(z - q) * direction).astype(dtype)
