"""Resizing of feature maps: adaptive average pooling, and linear interpolation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.functional.sharding import with_automatic_axes


@with_automatic_axes(like="x")
def adaptive_average_pool(
    x: Float[Array, "*space dim"], shape: Sequence[int], mask: Bool[Array, "*space"] | None = None
) -> tuple[Float[Array, "*pooled dim"], Bool[Array, "*pooled"] | None]:
    r"""Average over windows whose sizes follow from the output shape.

    .. math::
      y_i = \frac{\sum_{j \in W_i} m_j x_j}{\sum_{j \in W_i} m_j},\quad
      W_i = \{\lfloor i n / k \rfloor, \dots, \lceil (i + 1) n / k \rceil - 1\}

    for each of the ``len(shape)`` spatial axes, of size :math:`n`; windows over several axes are boxes. Each axis costs
    a product with an :math:`n \times k` matrix.

    Args:
      x: Feature map: any leading axes, then the spatial axes, then features.
      shape: Output sizes :math:`k` of the spatial axes. Sizes larger than those of ``x`` repeat positions.
      mask: True for the positions that count; all by default.

    Returns:
      Averages in the dtype of ``x``, and the mask of windows with at least one position that counts (None without
      ``mask``). Averages of the other windows are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> pooled, _ = adaptive_average_pool(jnp.arange(5.0)[:, None], (2,))
      >>> pooled[:, 0].tolist()
      [1.0, 3.0]

    Source: the windows are those of ``torch.nn.functional.adaptive_avg_pool2d``.
    """
    space = _space(x, shape)
    windows = [_windows(size, target) for size, target in zip(space, shape, strict=True)]
    valid = jnp.ones(space, bool) if mask is None else mask
    counts = _contract(valid[..., None].astype(jnp.float32), windows)
    kept = x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))
    sums = _contract(kept, windows)
    pooled = sums / jnp.broadcast_to(jnp.maximum(counts, 1.0), sums.shape)
    return pooled.astype(x.dtype), None if mask is None else counts[..., 0] > 0


@with_automatic_axes(like="x")
def interpolate_linearly(x: Float[Array, "*space dim"], shape: Sequence[int]) -> Float[Array, "*resized dim"]:
    r"""Resize the spatial axes of a feature map by linear interpolation.

    Output point :math:`i` of :math:`k` lies at :math:`(i + 1/2)\, n/k - 1/2`; the map is continued by its first and
    last values. There is no antialiasing. Each axis costs a product with an :math:`n \times k` matrix, whose entries do
    not depend on how the program is compiled.

    Args:
      x: Feature map: any leading axes, then the spatial axes, then features.
      shape: Output sizes :math:`k` of the spatial axes.

    Returns:
      The resized map, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> interpolate_linearly(jnp.array([[0.0], [4.0]]), (4,))[:, 0].tolist()
      [0.0, 1.0, 3.0, 4.0]

    Source: as ``torch.nn.functional.interpolate`` with ``align_corners=False``, and ``jax.image.resize`` with
    ``antialias=False``.
    """
    weights = [_linear_weights(size, target) for size, target in zip(_space(x, shape), shape, strict=True)]
    return _contract(x, weights).astype(x.dtype)


def _space(x: Array, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the spatial axes."""
    return x.shape[x.ndim - 1 - len(shape) : -1]


def _windows(size: int, target: int) -> np.ndarray:
    """Return whether each position (row) lies in each window (column)."""
    number, position = np.arange(target)[None, :], np.arange(size)[:, None]
    return (position >= number * size // target) & (position < -(-(number + 1) * size // target))


def _linear_weights(size: int, target: int) -> np.ndarray:
    """Return the weight of each position (row) in each output point (column)."""
    points = np.clip((np.arange(target) + 0.5) * (size / target) - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(points[None, :] - np.arange(size)[:, None]), 0)


def _contract(x: Array, matrices: Sequence[np.ndarray]) -> Array:
    """Multiply each spatial axis by its matrix, in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, matrix in enumerate(matrices, start=x.ndim - 1 - len(matrices)):
        # An axis that keeps its size would only be copied.
        if not np.array_equal(matrix, np.eye(*matrix.shape)):
            product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 0), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, -1, axis)
    return x
