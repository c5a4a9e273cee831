"""Between resolutions: averages over windows on the way down, linear interpolation on the way up."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def adaptive_average_pool(
    x: Float[Array, "*space dim"], shape: Sequence[int], mask: Bool[Array, "*space"] | None = None
) -> tuple[Float[Array, "*pooled dim"], Bool[Array, "*pooled"] | None]:
    r"""Averages over windows, so many that the wanted shape results from an input of any size.

    .. math::
      y_i = \frac{\sum_{j \in W_i} m_j x_j}{\sum_{j \in W_i} m_j},\quad
      W_i = \{\lfloor i n / k \rfloor, \dots, \lceil (i + 1) n / k \rceil - 1\}

    along each of the last ``len(shape)`` axes before the features; windows of several axes are boxes. Each axis costs
    a product with an :math:`n \times k` matrix.

    Args:
      x: Any leading axes, then the axes of space, then features.
      shape: The wanted sizes :math:`k` of the axes of space; larger ones than those of ``x`` repeat positions.
      mask: True for the positions that count; all by default.

    Returns:
      The averages in the dtype of ``x``, and with a mask the positions whose window holds at least one that counts.
      The others are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> pooled, _ = adaptive_average_pool(jnp.arange(5.0)[:, None], (2,))
      >>> pooled[:, 0].tolist()
      [1.0, 3.0]

    Source: the windows are those of ``torch.nn.functional.adaptive_avg_pool2d``.
    """
    space = _space(x, shape)
    windows = [_windows(size, wanted) for size, wanted in zip(space, shape, strict=True)]
    valid = jnp.ones(space, bool) if mask is None else mask
    counts = _contract(valid[..., None].astype(jnp.float32), windows)
    kept = x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))
    sums = _contract(kept, windows)
    pooled = sums / jnp.broadcast_to(jnp.maximum(counts, 1.0), sums.shape)
    return pooled.astype(x.dtype), None if mask is None else counts[..., 0] > 0


def interpolate_linearly(x: Float[Array, "*space dim"], shape: Sequence[int]) -> Float[Array, "*resized dim"]:
    r"""Reads a map off at more, or fewer, evenly spaced points, linearly between its own.

    Point :math:`i` of :math:`k` lies at :math:`(i + 1/2)\, n/k - 1/2`, and outside of the first and the last position
    the map goes on as constant. Nothing is averaged on the way down. Each axis costs a product with an
    :math:`n \times k` matrix, whose entries do not depend on how the program is compiled.

    Args:
      x: Any leading axes, then the axes of space, then features.
      shape: The wanted sizes :math:`k` of the axes of space.

    Returns:
      The values at the points, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> interpolate_linearly(jnp.array([[0.0], [4.0]]), (4,))[:, 0].tolist()
      [0.0, 1.0, 3.0, 4.0]

    Source: as ``torch.nn.functional.interpolate`` with ``align_corners=False``, and ``jax.image.resize`` with
    ``antialias=False``.
    """
    weights = [_linear_weights(size, wanted) for size, wanted in zip(_space(x, shape), shape, strict=True)]
    return _contract(x, weights).astype(x.dtype)


def _space(x: Array, shape: Sequence[int]) -> tuple[int, ...]:
    return x.shape[x.ndim - 1 - len(shape) : -1]


def _windows(size: int, wanted: int) -> np.ndarray:
    number, position = np.arange(wanted)[None, :], np.arange(size)[:, None]
    return (position >= number * size // wanted) & (position < -(-(number + 1) * size // wanted))


def _linear_weights(size: int, wanted: int) -> np.ndarray:
    points = np.clip((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(points[None, :] - np.arange(size)[:, None]), 0)


def _contract(x: Array, matrices: Sequence[np.ndarray]) -> Array:
    """Multiplies each axis of space by its matrix, in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, matrix in enumerate(matrices, start=x.ndim - 1 - len(matrices)):
        if not np.array_equal(matrix, np.eye(*matrix.shape)):
            product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 0), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, -1, axis)
    return x
