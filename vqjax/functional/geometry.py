"""Geometry of a vector and its code, as gradient estimators and metrics use it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.functional.norms import MIN_LENGTH, length_and_direction

Vectors = Float[Array, "*batch dim"]
Lengths = Float[Array, "*batch 1"]

# A shorter sum (or difference) of two unit vectors has less than two correct digits in its direction.
_MIN_AXIS_LENGTH = 1e-5
# An infinite ratio times a zero of the gradient would be NaN.
_MAX_RATIO = 1e30


def norm_ratio(z: Vectors, q: Vectors) -> Lengths:
    r"""Compute :math:`|q| / |z|`, the scale of the rotation trick; one if either vector is too short.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      Ratios in float32, with a last axis of size one.

    Example:
      >>> import jax.numpy as jnp
      >>> print(norm_ratio(jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])))
      [0.5]
    """
    z_length, _ = length_and_direction(z)
    q_length, _ = length_and_direction(q)
    exists = map_exists(z_length, q_length)
    return jnp.where(exists, jnp.minimum(q_length / jnp.where(exists, z_length, 1.0), _MAX_RATIO), 1.0)


def map_exists(z_length: Lengths, q_length: Lengths, axis_length: Lengths | None = None) -> Bool[Array, "*batch 1"]:
    """Return whether two vectors, and the axis of the map between them, are long enough to have a direction."""
    exists = (z_length >= MIN_LENGTH) & (q_length >= MIN_LENGTH)
    return exists if axis_length is None else exists & (axis_length >= _MIN_AXIS_LENGTH)


def inner(x: Vectors, y: Vectors) -> Lengths:
    """Compute inner products along the last axis, which is kept."""
    return jnp.sum(x * y, axis=-1, keepdims=True)
