"""How similar tokens are to codes, on the scale that temperatures refer to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def similarity(
    z: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], metric: str
) -> Float[Array, "tokens codes"]:
    r"""Returns :math:`-|z - e_k|` (not squared), or the cosine of unit vectors.

    The scale is that of vector-quantize-pytorch, so temperatures carry over.

    Args:
      z: Tokens.
      codes: The codebook.
      metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
      float32, differentiable; the gradient of a distance of zero is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> print(similarity(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]]), "euclidean").round(4))
      [[-5.]]
    """
    z, codes = z.astype(jnp.float32), codes.astype(jnp.float32)
    if metric == "cosine":
        return jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    center = jax.lax.stop_gradient(jnp.mean(codes, axis=0, keepdims=True))
    z, codes = z - center, codes - center
    products = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    squares = [jnp.sum(jnp.square(x), axis=-1) for x in (z, codes)]
    squared = squares[0][:, None] + squares[1][None] - 2 * products
    apart = squared > 0
    return -jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
