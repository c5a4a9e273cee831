"""What the maps from a vector to its code have in common."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.functional.norms import SHORTEST, length_and_direction

Vectors = Float[Array, "*batch dim"]

# Below this length of u + q̂ (or u - q̂) rounding leaves its direction with less than two correct digits.
_SHORTEST_SUM = 1e-5
# An infinite ratio would turn a zero of the gradient into NaN.
_LARGEST_RATIO = 1e30


def norm_ratio(z: Vectors, q: Vectors) -> Float[Array, "*batch 1"]:
    r"""The scale of the rotation trick, :math:`|q| / |z|`; one where either vector is too short.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      The ratio, float32, with a last axis of size one.

    Example:
      >>> import jax.numpy as jnp
      >>> print(norm_ratio(jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])))
      [0.5]
    """
    z_length, _ = length_and_direction(z)
    q_length, _ = length_and_direction(q)
    exists = map_exists(z_length, q_length)
    return jnp.where(exists, jnp.minimum(q_length / jnp.where(exists, z_length, 1.0), _LARGEST_RATIO), 1.0)


def map_exists(
    z_length: Float[Array, "*batch 1"],
    q_length: Float[Array, "*batch 1"],
    axis_length: Float[Array, "*batch 1"] | None = None,
) -> Bool[Array, "*batch 1"]:
    """Where both vectors, and the axis between them, are long enough to have a direction."""
    exists = (z_length >= SHORTEST) & (q_length >= SHORTEST)
    return exists if axis_length is None else exists & (axis_length >= _SHORTEST_SUM)


def inner(x: Vectors, y: Vectors) -> Float[Array, "*batch 1"]:
    """Inner products along the last axis, which stays."""
    return jnp.sum(x * y, axis=-1, keepdims=True)
