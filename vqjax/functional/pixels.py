"""Ranges of pixels: what is certainly not in the range that a function expects is refused."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vqjax.errors import UserError

# Of the width of the range: reconstructions overshoot it, by less.
_OVERSHOOT = 0.25


def check_pixels(name: str, images: Array | np.ndarray, low: float, high: float, *, advice: str) -> None:
    """Refuse images that are not floats, not finite, or further outside of a range than reconstructions overshoot it.

    Inside of ``jit`` values are not known, and only the dtype is checked.

    Args:
      name: Name of the argument.
      images: Pixels of any shape.
      low: Least value of a pixel.
      high: Largest value.
      advice: Ends the message about other dtypes and values: what to do.

    Raises:
      UserError: They are not such pixels.

    Example:
      >>> check_pixels("x", np.array([0.0, 255.0]), 0.0, 1.0, advice="divide by 255")
      Traceback (most recent call last):
      vqjax.errors.UserError: `x` must be floats in [0, 1], got values from 0 to 255; divide by 255.
    """
    expected = f"`{name}` must be floats in [{low:g}, {high:g}]"
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"{expected}, got {images.dtype}; {advice}.")
    found = value_range(images)
    if found is None:
        return
    least, largest = found
    if not (np.isfinite(least) and np.isfinite(largest)):
        raise UserError(f"{expected}, got values that are not finite; look where they come from.")
    overshoot = _OVERSHOOT * (high - low)
    if least < low - overshoot or largest > high + overshoot:
        raise UserError(f"{expected}, got values from {least:.3g} to {largest:.3g}; {advice}.")


def value_range(array: Array | np.ndarray) -> tuple[float, float] | None:
    """Return the least and the largest value, NaN if any is; None for empty arrays and inside of ``jit``.

    Args:
      array: Numbers of any shape.

    Example:
      >>> value_range(np.array([3, 1, 2]))
      (1.0, 3.0)
    """
    if isinstance(array, jax.core.Tracer) or array.size == 0:
        return None
    if isinstance(array, np.ndarray):
        return float(array.min()), float(array.max())
    least, largest = _extremes(array)
    return float(least), float(largest)


@jax.jit
def _extremes(array: Array) -> tuple[Array, Array]:
    return jnp.min(array), jnp.max(array)
