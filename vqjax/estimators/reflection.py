"""The rotation trick's mirror image."""

import jax.numpy as jnp

from vqjax.estimators.geometry import inner, map_exists, norm_ratio
from vqjax.estimators.jacobian import Vectors, with_jacobian
from vqjax.norms import length_and_direction


def reflection(z: Vectors, q: Vectors) -> Vectors:
    r"""One Householder reflection and a rescaling: the rotation's mirror image, of determinant -1.

    .. math::
      \partial q' / \partial z = (|q|/|z|)\,(I - 2 w w^T),\quad w = (u - \hat q)/|u - \hat q|

    Kept for comparison: it flips the gradient along ``w`` where ``z`` is close to its code, which is where
    training converges.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: reflection(z, q)[1])(z).round(4))
      [0.5 0. ]

    Source: Fifty et al., ICLR 2025, Appendix A.8.
    """

    def reflect(z: Vectors, q: Vectors, tangent: Vectors) -> Vectors:
        z_length, u = length_and_direction(z)
        q_length, q_hat = length_and_direction(q)
        difference, w = length_and_direction(u - q_hat)
        exists = map_exists(z_length, q_length, difference)
        mapped = norm_ratio(z, q) * (tangent - 2 * w * inner(w, tangent))
        return jnp.where(exists, mapped, tangent)

    return with_jacobian(reflect, z, q)
