"""The straight-through estimator, plain and weighted by distance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vqjax.estimators.jacobian import Vectors, with_jacobian, with_scaled_gradient
from vqjax.functional.norms import length_and_direction
from vqjax.functional.sharding import with_automatic_axes


def straight_through(z: Vectors, q: Vectors) -> Vectors:
    r"""Return the codes, and pass their gradient to the latents unchanged.

    .. math:: \partial q' / \partial z = I

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

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


@with_automatic_axes(like="z")
def dynamic_straight_through(
    z: Vectors,
    q: Vectors,
    *,
    indices: Int[Array, "*batch"],
    num_codes: int,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> Vectors:
    r"""Return the codes, and pass their gradient weighted by how close each latent is to its code.

    .. math:: \partial q'/\partial z = \frac{\min_{j:\, i_j = i} |z_j - q|^2}{|z - q|^2}\, I \preceq I

    Of all latents with the same code, the closest keeps its gradient; the gradients of the others are attenuated.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.
      indices: The index of each code.
      num_codes: Number of codes.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q, indices = jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1)), jnp.array([0, 0])
      >>> f = lambda z: dynamic_straight_through(z, q, indices=indices, num_codes=1).sum()
      >>> print(jax.grad(f)(z)[:, 0])
      [1.   0.25]

    Source: StableVQ, 2026 (arXiv 2609.26774), "Dynamic STE".
    """
    difference = jax.lax.stop_gradient(z.astype(jnp.float32) - q.astype(jnp.float32))
    # Squared only as a ratio: the squares of very long or short distances leave float32.
    distance = length_and_direction(difference)[0][..., 0]
    candidates = distance if mask is None else jnp.where(mask, distance, jnp.inf)
    closest = jax.ops.segment_min(candidates.reshape(-1), indices.reshape(-1), num_segments=num_codes)
    if axis_name is not None:
        closest = jax.lax.pmin(closest, axis_name)
    ratio = jnp.where(distance > 0, closest[indices] / jnp.where(distance > 0, distance, 1.0), 1.0)
    # A masked token may hold anything, NaN included.
    weight = jnp.where(jnp.isfinite(distance), jnp.square(jnp.minimum(ratio, 1.0)), 0.0)
    return with_jacobian(lambda z, q, tangent: tangent, with_scaled_gradient(z, weight[..., None]), q)
