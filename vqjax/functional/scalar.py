"""Scalar quantization: each feature is bounded and rounded to one of a few levels.

First the grids of finite scalar quantization, whose levels lie at equal distances in a bounded range; then bins of
equal probability under a distribution, and the noise of finite scalar perturbation.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, laplace, logistic, norm
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.functional.numbers import Number
from vqjax.functional.sharding import with_automatic_axes

BOUNDS = ("paper", "asymmetric", "symmetric")
"""Placements of an even number of levels around zero, see :func:`bounded`."""

# Relative distance by which the bound ends before ("paper") or behind ("asymmetric") the outermost level.
_MARGIN = 1e-3

Features = Float[Array, "*batch features"]
Levels = Int[Array, "*batch features"]
Values = Float[Array | np.ndarray, " values"]


def bounded(z: Features, radices: Sequence[int], bound: str = "asymmetric", hard_clamp: bool = False) -> Features:
    r"""Bound features to the range of their codes, differentiably.

    ``"symmetric"`` is :math:`\tanh z`. The other two shift even numbers of levels by half a step, so that zero is a
    code; with :math:`h = \lfloor L/2 \rfloor`,

    .. math:: \frac1h \Big(\tanh(z + s) \tfrac{(L-1)(1 \pm \epsilon)}{2} - o\Big),\quad
      o = \begin{cases} 1/2 & L\ \text{even} \\ 0 & L\ \text{odd} \end{cases},\quad \epsilon = 10^{-3}

    ``"paper"`` takes :math:`1 - \epsilon` and :math:`s = \tan(2o/((L-1)(1-\epsilon)))` as printed; ``"asymmetric"``
    takes :math:`1 + \epsilon`, so that rounding reaches the outermost level well before infinity, and
    :math:`\mathrm{arctanh}` for :math:`\tan`, so that zero stays zero.

    Args:
      z: Features, any real numbers.
      radices: :math:`L`, the number of levels of each feature.
      bound: One of :data:`BOUNDS`.
      hard_clamp: Clip to [-1, 1] instead of the hyperbolic tangent, for inputs in that range.

    Returns:
      Features in units of the codes, about [-1, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> print(bounded(jnp.array([0.0, 9.0]), (4, 5), "symmetric"))
      [0. 1.]

    Source: Mentzer et al., 2023 (arXiv 2309.15505), Appendix A.1; "symmetric": Parker et al., 2024 (arXiv
    2411.19842), Section 3.2.
    """
    squash = (lambda x: jnp.clip(x, -1.0, 1.0)) if hard_clamp else jnp.tanh
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
    """Round each feature to the nearest level of an even grid.

    Args:
      x: Features as returned by :func:`bounded`.
      radices: The number of levels of each feature.
      bound: The bound that was given to :func:`bounded`.

    Returns:
      int32 levels in ``[0, radices)``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(rounded_levels(jnp.array([-1.0, 0.2, 1.0]), (3, 3, 8), "symmetric"))
      [0 1 7]
    """
    if bound == "symmetric":
        steps = per_feature(np.asarray(radices) - 1, x)
        # Halves go up; `jnp.round` would take them to even levels.
        position = jnp.floor(steps * (x + 1) / 2 + 0.5)
    else:
        half_width = per_feature(np.asarray(radices) // 2, x)
        position = jnp.round(x * half_width) + half_width
    # The margin of "asymmetric" would lead beyond the last level if there are more than a thousand.
    return clipped_levels(position, radices)


def clipped_levels(position: Features, radices: Sequence[int]) -> Levels:
    """Convert integers to int32 levels, clipped to ``[0, radices)``."""
    largest = jnp.broadcast_to(jnp.asarray(radices, jnp.int32) - 1, position.shape)
    return jnp.clip(position.astype(jnp.int32), 0, largest)


def level_values(radices: Sequence[int], bound: str = "asymmetric") -> Float[np.ndarray, " values"]:
    r"""Return the values of all levels, one feature after the other.

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


@with_automatic_axes(like="levels")
def values_at(levels: Levels, values: Values, radices: Sequence[int]) -> Features:
    """Look up the values of levels.

    A table instead of arithmetic on the level: compilers fuse products with sums and replace divisions, differently in
    each program, and a code must have the same bits in all of them.

    Args:
      levels: Levels in ``[0, radices)``.
      values: The values of all levels, as :func:`level_values` returns them.
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
    return jnp.take(jnp.asarray(values, jnp.float32), starts + levels, mode="clip")


def nearest_levels(x: Features, values: Values, radices: Sequence[int]) -> Levels:
    """Find the level whose value is nearest to each feature, for values that need not lie on an even grid.

    Args:
      x: Features.
      values: The values of all levels, one feature after the other.
      radices: The number of levels of each feature.

    Returns:
      int32 levels in ``[0, radices)``, the lower one of two at the same distance. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> print(nearest_levels(jnp.array([0.9, 0.5]), jnp.array([0.0, 1.0, 5.0, 0.0, 1.0]), (3, 2)))
      [1 0]
    """
    x, values = jax.lax.stop_gradient((x, jnp.asarray(values, jnp.float32)))
    # One row per feature, padded to the largest number of levels.
    numbers = np.arange(max(radices))[None, :]
    exists = numbers < np.asarray(radices)[:, None]
    places = np.where(exists, _starts(radices)[:, None] + numbers, 0)
    table = jnp.take(values, jnp.asarray(places, jnp.int32), mode="clip")
    shape = (*x.shape, max(radices))
    distance = jnp.abs(x[..., None] - jnp.broadcast_to(table, shape))
    return jnp.argmin(jnp.where(jnp.broadcast_to(exists, shape), distance, jnp.inf), axis=-1).astype(jnp.int32)


def soft_clamp(x: Features, limits: Sequence[int] | Sequence[Number]) -> Features:
    r"""Limit features smoothly: :math:`c \tanh(x / c)`.

    Args:
      x: Features.
      limits: :math:`c`, the limit of each feature, above 0.

    Returns:
      Features in ``(-limits, limits)``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(soft_clamp(jnp.array([0.01, 100.0]), (2.0, 2.0)).round(3))
      [0.01 2.  ]
    """
    limit = per_feature(limits, x)
    return limit * jnp.tanh(x / limit)


def per_feature(numbers: Sequence[int] | Sequence[Number] | np.ndarray, like: Features) -> Features:
    """Broadcast one number per feature to the shape of ``like``, in float32."""
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), like.shape)


def _starts(radices: Sequence[int]) -> np.ndarray:
    """Return the position of each feature's first value."""
    return np.cumsum([0, *radices[:-1]])


Probabilities = Float[Array, "*batch features"]


class Distribution(NamedTuple):
    """A continuous distribution on the real numbers.

    Attributes:
      cdf: Cumulative distribution function, from numbers to [0, 1].
      inverse: Inverse of ``cdf``.
    """

    cdf: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _laplace_inverse(p: Array) -> Array:
    return jnp.where(p < 0.5, jnp.log(2 * p), -jnp.log(2 * (1 - p)))


DISTRIBUTIONS = {
    "tanh": Distribution(lambda z: logistic.cdf(z, scale=0.5), lambda p: logistic.ppf(p, scale=0.5)),
    "sigmoid": Distribution(logistic.cdf, logistic.ppf),
    "normal": Distribution(norm.cdf, norm.ppf),
    "laplace": Distribution(laplace.cdf, _laplace_inverse),
    "cauchy": Distribution(cauchy.cdf, cauchy.ppf),
}
"""Distributions by name. The cumulative distribution function of ``"tanh"`` is :math:`(1 + \\tanh z)/2`."""


class Moments(NamedTuple):
    """Target moments of every feature for :func:`moments_loss`; the target mean is 0.

    Attributes:
      variance: Target variance.
      shape: Whether skewness and excess kurtosis have a target, 0, as well.
      weights: Weights of the squared deviations of mean, variance, skewness and kurtosis.
    """

    variance: float
    shape: bool = False
    weights: tuple[float, float, float, float] = (0.1, 0.07, 0.06, 0.05)


MOMENTS = {
    "variance": Moments(1.0),
    "kurtosis": Moments(1.0, shape=True),
    "tanh": Moments(0.8225),
    "sigmoid": Moments(3.29),
    "laplace": Moments(2.0),
}
"""Target moments by name: unit variance, also with a Gaussian's shape, and the variances of three distributions."""


def bins(p: Probabilities, radices: Sequence[int]) -> Int[Array, "*batch features"]:
    """Find the bin that each probability lies in.

    Args:
      p: Probabilities in [0, 1].
      radices: The number of bins of each feature.

    Returns:
      int32 bins in ``[0, radices)``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(bins(jnp.array([0.3, 1.0]), (4, 4)))
      [1 3]
    """
    return clipped_levels(jnp.floor(p * per_feature(radices, p)), radices)


def bin_centers(radices: Sequence[int]) -> Float[np.ndarray, " values"]:
    """Return the centers of all bins, one feature after the other.

    Args:
      radices: The number of bins of each feature.

    Returns:
      float32 numbers in (0, 1), ``sum(radices)`` of them.

    Example:
      >>> print(bin_centers((2, 1)))
      [0.25 0.75 0.5 ]
    """
    return np.concatenate([(np.arange(count) + 0.5) / count for count in radices]).astype(np.float32)


def perturbed(key: Key[Array, ""], p: Probabilities, radices: Sequence[int]) -> Probabilities:
    """Add uniform noise of up to half a bin; probabilities that would leave (0, 1) stay where they are.

    Args:
      key: Random key.
      p: Probabilities in [0, 1].
      radices: The number of bins of each feature.

    Returns:
      Probabilities in [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> p = jnp.full((100, 1), 0.5)
      >>> bool((jnp.abs(perturbed(jax.random.key(0), p, (4,)) - p) <= 0.125).all())
      True
    """
    noise = jax.random.uniform(key, p.shape, jnp.float32, minval=-0.5, maxval=0.5) / per_feature(radices, p)
    return jnp.where((p + noise > 0) & (p + noise < 1), p + noise, p)


def unit_variance(p: Array | np.ndarray) -> Array | np.ndarray:
    r"""Scale uniformly distributed probabilities to mean 0 and variance 1.

    .. math:: \sqrt{12}\, (p - \tfrac12)

    Args:
      p: Probabilities in [0, 1].

    Returns:
      Numbers in :math:`[-\sqrt3, \sqrt3]`.

    Example:
      >>> import numpy as np
      >>> print(unit_variance(np.array([0.0, 0.5])).round(3))
      [-1.732  0.   ]
    """
    return (p - 0.5) * math.sqrt(12)


@with_automatic_axes()
def moments_loss(
    z: Features,
    moments: Moments,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    r"""Penalize the distance of a batch's moments from their targets.

    .. math:: \frac1d \sum_j 0.1\, \mu_j^2 + 0.07\, (\sigma_j^2 - \sigma^2)^2
      \;[\,+\; 0.06\, \gamma_j^2 + 0.05\, \kappa_j^2\,]

    with the unbiased variance, and skewness :math:`\gamma` and excess kurtosis :math:`\kappa` only if
    ``moments.shape`` is True.

    Args:
      z: Features of all tokens.
      moments: Target moments.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split. The value is then that of all tokens on every device.

    Returns:
      A scalar of at least 0; zero if no token counts.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(moments_loss(jnp.array([[-1.0], [1.0]]), Moments(variance=1.0))), 4)
      0.07

    Source: Finite scalar perturbation, 2026 (arXiv 2602.17133).
    """
    z = z.reshape(math.prod(z.shape[:-1]), z.shape[-1]).astype(jnp.float32)
    valid = jnp.ones(z.shape[0], bool) if mask is None else mask.reshape(-1)
    z = jnp.where(valid[:, None], z, 0.0)

    def total(values: Float[Array, "tokens features"]) -> Float[Array, " features"]:
        summed = jnp.sum(jnp.where(valid[:, None], values, 0.0), axis=0)
        return summed if axis_name is None else jax.lax.psum(summed, axis_name)

    tokens = total(jnp.ones_like(z))
    mean = total(z) / jnp.maximum(tokens, 1.0)
    centered = z - jnp.broadcast_to(mean, z.shape)
    variance = total(jnp.square(centered)) / jnp.maximum(tokens - 1, 1.0)
    deviations = [mean, variance - moments.variance]
    if moments.shape:
        scale = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        scores = centered / jnp.broadcast_to(scale, z.shape)
        # A Gaussian's third standardized moment is 0, its fourth 3.
        deviations += [
            total(scores**power) / jnp.maximum(tokens, 1.0) - normal for power, normal in ((3, 0.0), (4, 3.0))
        ]
    loss = sum(w * jnp.mean(jnp.square(d)) for w, d in zip(moments.weights, deviations, strict=False))
    return jnp.where(tokens[0] > 0, loss, 0.0)
