"""Scalars instead of vectors as codes: each feature is bounded and rounded to one of a few values of its own."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BOUNDS = ("paper", "asymmetric", "symmetric")
"""Ways of placing an even number of levels around zero, see :func:`bounded`."""

# How far the range of the bound ends before ("paper") or behind ("asymmetric") the outermost level.
_MARGIN = 1e-3

Features = Float[Array, "*batch features"]
Levels = Int[Array, "*batch features"]
Values = Float[Array | np.ndarray, " values"]


def bounded(z: Features, radices: Sequence[int], bound: str = "asymmetric", hard_clamp: bool = False) -> Features:
    r"""Squashes features into the range of their codes, differentiably.

    ``"symmetric"`` is :math:`\tanh z`. The other two shift even numbers of levels by half a step, so that zero is a
    code; with :math:`h = \lfloor L/2 \rfloor`,

    .. math:: \frac1h \Big(\tanh(z + s) \tfrac{(L-1)(1 \pm \epsilon)}{2} - o\Big),\quad
      o = \begin{cases} 1/2 & L\ \text{even} \\ 0 & L\ \text{odd} \end{cases},\quad \epsilon = 10^{-3}

    ``"paper"`` takes :math:`1 - \epsilon` and :math:`s = \tan(2o/((L-1)(1-\epsilon)))` as printed; ``"asymmetric"``
    takes :math:`1 + \epsilon`, so that rounding reaches the outermost level well before infinity, and
    :math:`\mathrm{arctanh}` for :math:`\tan`, so that zero stays zero.

    Args:
      z: Any real numbers.
      radices: :math:`L`, the number of levels of each feature.
      bound: One of :data:`BOUNDS`.
      hard_clamp: Clip to [-1, 1] in place of the hyperbolic tangent, for inputs in that range.

    Returns:
      Features in units of the codes, about [-1, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> print(bounded(jnp.array([0.0, 9.0]), (4, 5), "symmetric"))
      [0. 1.]

    Source: Mentzer et al., 2023 (arXiv 2309.15505), Appendix A.1; "symmetric": Parker et al., 2024 (arXiv
    2411.19842), Section 3.2.
    """
    squash = _clip_to_one if hard_clamp else jnp.tanh
    if bound == "symmetric":
        return squash(z)
    counts = np.asarray(radices, np.float64)
    half_range = (counts - 1) * (1 - _MARGIN if bound == "paper" else 1 + _MARGIN) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    shift = offset / half_range
    if not hard_clamp:
        shift = np.tan(shift) if bound == "paper" else np.arctanh(shift)
    squashed = squash(z + per_feature(shift, z)) * per_feature(half_range, z)
    return (squashed - per_feature(offset, z)) / per_feature(counts // 2, z)


def rounded_levels(x: Features, radices: Sequence[int], bound: str = "asymmetric") -> Levels:
    """The level that is nearest to each feature.

    Args:
      x: From :func:`bounded`.
      radices: The number of levels of each feature.
      bound: That of :func:`bounded`.

    Returns:
      int32 levels in ``[0, radices)``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(rounded_levels(jnp.array([-1.0, 0.2, 1.0]), (3, 3, 8), "symmetric"))
      [0 1 7]
    """
    if bound == "symmetric":
        steps = per_feature(np.asarray(radices) - 1, x)
        position = jnp.floor(steps * (x + 1) / 2 + 0.5)
    else:
        half_width = per_feature(np.asarray(radices) // 2, x)
        position = jnp.round(x * half_width) + half_width
    # The margin of "asymmetric" would lead beyond the last level where there are more than a thousand.
    return clipped_levels(position, radices)


def clipped_levels(position: Features, radices: Sequence[int]) -> Levels:
    """Whole numbers as int32 levels, in ``[0, radices)`` whatever they are."""
    largest = jnp.broadcast_to(jnp.asarray(radices, jnp.int32) - 1, position.shape)
    return jnp.clip(position.astype(jnp.int32), 0, largest)


def level_values(radices: Sequence[int], bound: str = "asymmetric") -> Float[np.ndarray, " values"]:
    r"""The values of all levels, one feature after the other.

    .. math:: \frac{l - h}{h},\ h = \lfloor L/2 \rfloor \quad\text{or, for "symmetric",}\quad \frac{2l - (L-1)}{L-1}

    Args:
      radices: :math:`L`, the number of levels of each feature.
      bound: One of :data:`BOUNDS`.

    Returns:
      float32 values in [-1, 1], ``sum(radices)`` of them.

    Example:
      >>> print(level_values((4, 3)))
      [-1.  -0.5  0.   0.5 -1.   0.   1. ]
    """

    def of_feature(count: int) -> np.ndarray:
        levels = np.arange(count)
        return (
            (2 * levels - (count - 1)) / (count - 1) if bound == "symmetric" else (levels - count // 2) / (count // 2)
        )

    return np.concatenate([of_feature(count) for count in radices]).astype(np.float32)


def values_at(levels: Levels, values: Values, radices: Sequence[int]) -> Features:
    """Looks up the values of levels.

    Not computed from the level: compilers contract products and sums and replace divisions, each time in another
    way, and codes have to be the same bits wherever they come from.

    Args:
      levels: In ``[0, radices)``.
      values: Of all levels, one feature after the other.
      radices: The number of levels of each feature.

    Returns:
      Values, differentiable with respect to ``values``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(values_at(jnp.array([[3, 0], [1, 2]]), level_values((4, 3)), (4, 3)))
      [[ 0.5 -1. ]
       [-0.5  1. ]]
    """
    starts = jnp.broadcast_to(jnp.asarray(_starts(radices), jnp.int32), levels.shape)
    return jnp.take(jnp.asarray(values), starts + levels, mode="clip")


def nearest_levels(x: Features, values: Values, radices: Sequence[int]) -> Levels:
    """The level whose value is nearest to each feature, for values in any place; without gradient.

    Args:
      x: Features.
      values: Of all levels, one feature after the other.
      radices: The number of levels of each feature.

    Returns:
      int32 levels in ``[0, radices)``, the lower one of two at the same distance.

    Example:
      >>> import jax.numpy as jnp
      >>> print(nearest_levels(jnp.array([0.9, 0.5]), jnp.array([0.0, 1.0, 5.0, 0.0, 1.0]), (3, 2)))
      [1 0]
    """
    x, values = jax.lax.stop_gradient((x, jnp.asarray(values)))
    numbers = np.arange(max(radices))[None, :]
    exists = numbers < np.asarray(radices)[:, None]
    table = jnp.take(values, jnp.asarray(np.asarray(_starts(radices))[:, None] + numbers), mode="clip")
    shape = (*x.shape, max(radices))
    distance = jnp.abs(x[..., None] - jnp.broadcast_to(table, shape))
    return jnp.argmin(jnp.where(jnp.broadcast_to(exists, shape), distance, jnp.inf), axis=-1).astype(jnp.int32)


def soft_clamp(x: Features, limits: Sequence[int] | Sequence[float]) -> Features:
    r"""Keeps features within limits, smoothly: :math:`c \tanh(x / c)`.

    Args:
      x: Features.
      limits: :math:`c` of each feature, above 0.

    Returns:
      Features in ``(-limits, limits)``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(soft_clamp(jnp.array([0.01, 100.0]), (2.0, 2.0)).round(3))
      [0.01 2.  ]
    """
    limit = per_feature(np.asarray(limits), x)
    return limit * jnp.tanh(x / limit)


def _clip_to_one(x: Features) -> Features:
    return jnp.clip(x, -1.0, 1.0)


def per_feature(numbers: Sequence[int] | Sequence[float] | np.ndarray, like: Features) -> Features:
    """One number per feature, for every vector."""
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), like.shape)


def _starts(radices: Sequence[int]) -> np.ndarray:
    """Where the values of each feature begin."""
    return np.cumsum([0, *radices[:-1]])
