"""Lengths and directions of vectors, safe at zero and at the ends of the floating-point range."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_LENGTH = 1e-6
"""Length below which a vector has no usable direction; other libraries clamp norms at the same value."""


def length_and_direction(
    x: Float[Array, "*batch dim"],
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch dim"]]:
    """Split vectors into Euclidean length and unit direction, in float32.

    The largest component is divided out first, so that squares neither overflow nor underflow.

    Args:
      x: Vectors along the last axis, any floating-point dtype.

    Returns:
      Lengths, and unit vectors. The direction of a zero vector is the zero vector.

    Example:
      >>> import jax.numpy as jnp
      >>> length, direction = length_and_direction(jnp.array([3e30, 4e30]))
      >>> print(length, [round(x, 3) for x in direction.tolist()])
      [5.e+30] [0.6, 0.8]
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scaled = x / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    return largest * norm, scaled / jnp.where(norm > 0, norm, 1.0)


def normalize(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Scale vectors to unit length, differentiably; vectors shorter than ``MIN_LENGTH`` become zero, NaN stays.

    The gradient of a vector that is too short is zero: the true one grows without bound as the length shrinks.

    Args:
      x: Vectors along the last axis, any floating-point dtype.

    Returns:
      Vectors of length one or zero, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      [[0.6 0.8]
       [0.  0. ]]
    """
    # Not ">=", to which NaN would be a vector that is too short, and would be lost.
    long_enough = ~(length_and_direction(jax.lax.stop_gradient(x))[0] < MIN_LENGTH)
    # Double `where`: the branch that is not taken must not put NaN into the gradient either.
    safe = jnp.where(long_enough, x, jnp.ones_like(x)).astype(jnp.float32)
    # A constant scale: it cancels in the quotient, so leaving out its gradient changes nothing.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(safe), axis=-1, keepdims=True))
    scaled = safe / largest
    unit = scaled * jax.lax.rsqrt(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    return jnp.where(long_enough, unit, 0.0).astype(x.dtype)


def normalize_rms(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Divide vectors by the root mean square of their components, as :func:`normalize` divides by the length.

    Args:
      x: Vectors along the last axis, any floating-point dtype.

    Returns:
      Vectors of length sqrt(dim) or zero, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(normalize_rms(jnp.array([3.0, 3.0, -3.0])).round(4))
      [ 1.  1. -1.]

    Source: Zhang and Sennrich, 2019 (arXiv 1910.07467).
    """
    return x.shape[-1] ** 0.5 * normalize(x)


def normalize_layer(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Subtract the mean of the components of each vector, and apply :func:`normalize_rms`.

    Args:
      x: Vectors along the last axis, any floating-point dtype.

    Returns:
      Vectors of length sqrt(dim) whose components have the mean zero, or zero, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(normalize_layer(jnp.array([1.0, 3.0])).round(4))
      [-1.  1.]

    Source: Ba et al., 2016 (arXiv 1607.06450).
    """
    return normalize_rms(x - jnp.mean(x, axis=-1, keepdims=True))
