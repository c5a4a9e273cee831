"""The straight-through estimator."""

from vqjax.estimators.jacobian import Vectors, with_jacobian


def straight_through(z: Vectors, q: Vectors) -> Vectors:
    r"""The straight-through estimator: the gradient passes unchanged.

    .. math:: \partial q' / \partial z = I

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the gradient above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: straight_through(z, q)[1])(z).round(4))
      [0. 1.]

    Source: Bengio et al., 2013 (arXiv 1308.3432); van den Oord et al., 2017 (arXiv 1711.00937).
    """
    return with_jacobian(lambda z, q, tangent: tangent, z, q)
