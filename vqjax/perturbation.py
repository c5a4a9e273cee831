"""Bins of equal probability, noise within them, and a loss that gives features the distribution of the bins."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, laplace, logistic, norm
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.finite_scalar import clipped_levels, per_feature

Features = Float[Array, "*batch features"]
Probabilities = Float[Array, "*batch features"]


class Distribution(NamedTuple):
    """A distribution of the real numbers.

    Attributes:
      cdf: Probability of a smaller number; maps numbers to [0, 1].
      inverse: The number below which that probability lies.
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
"""By name; the first one is :math:`(1 + \\tanh z)/2`."""


class Moments(NamedTuple):
    """What :func:`moments_loss` asks for. The mean of every feature has to be 0.

    Attributes:
      variance: Of every feature.
      shape: Whether the skewness and the excess kurtosis have to be 0 as well.
      weights: Of the squared deviations of mean, variance, skewness and kurtosis.
    """

    variance: float
    shape: bool = False
    weights: tuple[float, float, float, float] = (0.1, 0.07, 0.06, 0.05)


MOMENTS = {
    "none": None,
    "variance": Moments(1.0),
    "kurtosis": Moments(1.0, shape=True),
    "tanh": Moments(0.8225),
    "sigmoid": Moments(3.29),
    "laplace": Moments(2.0),
}
"""By name: unit variance, unit variance and the shape of a Gaussian, and the variances of three distributions."""


def bins(p: Probabilities, radices: Sequence[int]) -> Int[Array, "*batch features"]:
    """The bin in which each probability lies.

    Args:
      p: In [0, 1].
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
    """The middles of all bins, one feature after the other.

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
    """Moves probabilities by uniform noise of up to half a bin; those that would leave (0, 1) stay where they are.

    Args:
      key: Random key.
      p: In [0, 1].
      radices: The number of bins of each feature.

    Returns:
      Probabilities in [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> p = jnp.full((100, 1), 0.5)
      >>> bool((jnp.abs(perturbed(jax.random.key(0), p, (4,)) - p) <= 0.125).all())
      True
    """
    noise = jax.random.uniform(key, p.shape, minval=-0.5, maxval=0.5) / per_feature(radices, p)
    return jnp.where((p + noise > 0) & (p + noise < 1), p + noise, p)


def unit_variance(p: Array | np.ndarray) -> Array | np.ndarray:
    r"""Probabilities, which are uniform where features have the distribution, with mean 0 and variance 1.

    .. math:: \sqrt{12}\, (p - \tfrac12)

    Args:
      p: In [0, 1].

    Returns:
      Numbers in :math:`[-\sqrt3, \sqrt3]`.

    Example:
      >>> import numpy as np
      >>> print(unit_variance(np.array([0.0, 0.5])).round(3))
      [-1.732  0.   ]
    """
    return (p - 0.5) * math.sqrt(12)


def moments_loss(
    z: Features,
    moments: Moments,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    r"""How far the features of a batch are from given moments.

    .. math:: \frac1d \sum_j 0.1\, \mu_j^2 + 0.07\, (\sigma_j^2 - \sigma^2)^2
      \;[\,+\; 0.06\, \gamma_j^2 + 0.05\, \kappa_j^2\,]

    with the unbiased variance, and skewness :math:`\gamma` and excess kurtosis :math:`\kappa` only where
    ``moments.shape`` asks for them.

    Args:
      z: Features of all tokens.
      moments: The moments asked for.
      mask: True for the tokens that count.
      axis_name: Mapped axis over which the batch is split. The value is then that of all tokens on every device.

    Returns:
      A scalar of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(moments_loss(jnp.array([[-1.0], [1.0]]), Moments(variance=1.0))), 4)
      0.07

    Source: Finite scalar perturbation, 2026 (arXiv 2602.17133).
    """
    z = z.reshape(math.prod(z.shape[:-1]), z.shape[-1]).astype(jnp.float32)
    counts = jnp.ones(z.shape[0], bool) if mask is None else mask.reshape(-1)

    def total(values: Float[Array, "tokens features"]) -> Float[Array, " features"]:
        found = jnp.sum(jnp.where(counts[:, None], values, 0.0), axis=0)
        return found if axis_name is None else jax.lax.psum(found, axis_name)

    tokens = total(jnp.ones_like(z))
    mean = total(z) / jnp.maximum(tokens, 1.0)
    centered = z - jnp.broadcast_to(mean, z.shape)
    variance = total(jnp.square(centered)) / jnp.maximum(tokens - 1, 1.0)
    deviations = [mean, variance - moments.variance]
    if moments.shape:
        deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        scores = centered / jnp.broadcast_to(deviation, z.shape)
        deviations += [
            total(scores**power) / jnp.maximum(tokens, 1.0) - normal for power, normal in ((3, 0.0), (4, 3.0))
        ]
    loss = sum(w * jnp.mean(jnp.square(d)) for w, d in zip(moments.weights, deviations, strict=False))
    return jnp.where(tokens[0] > 0, loss, 0.0)
