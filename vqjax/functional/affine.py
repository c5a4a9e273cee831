"""Per-feature means and variances, and the affine map from one to another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.functional.numbers import Number

_MIN_VARIANCE = 1e-5


class FeatureStatistics(NamedTuple):
    """Mean and biased variance of each feature.

    Attributes:
      mean: ``[dim]``, float32.
      variance: ``[dim]``, float32.
    """

    mean: Float[Array, " dim"]
    variance: Float[Array, " dim"]


def feature_statistics(
    z: Float[Array, "tokens dim"], mask: Bool[Array, " tokens"] | None = None, axis_name: str | None = None
) -> FeatureStatistics:
    """Compute mean and variance of each feature over the global batch.

    Args:
      z: Latents.
      mask: True for the tokens that count.
      axis_name: Mapped axis over which the batch is split.

    Returns:
      Mean and biased variance; zero and one if no token counts.

    Example:
      >>> import jax.numpy as jnp
      >>> mean, variance = feature_statistics(jnp.array([[1.0], [3.0]]))
      >>> mean.tolist(), variance.tolist()
      ([2.0], [1.0])
    """
    z = z.astype(jnp.float32)
    valid = jnp.ones(z.shape[:1], bool) if mask is None else mask

    def total(values: Array) -> Array:
        summed = jnp.sum(values, axis=0)
        return summed if axis_name is None else jax.lax.psum(summed, axis_name)

    count = total(valid.astype(jnp.float32))
    divisor = jnp.maximum(count, 1.0)
    mean = total(jnp.where(valid[:, None], z, 0.0)) / divisor
    variance = total(jnp.where(valid[:, None], jnp.square(z - mean[None]), 0.0)) / divisor
    return FeatureStatistics(mean, jnp.where(count > 0, variance, 1.0))


def update_statistics(old: FeatureStatistics, new: FeatureStatistics, decay: Number) -> FeatureStatistics:
    """Update moving averages of the statistics by one batch.

    Args:
      old: Moving averages before the batch.
      new: Statistics of the batch.
      decay: Decay of the moving averages, in ``[0, 1)``.

    Returns:
      Moving averages after the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> old, new = (FeatureStatistics(jnp.array([x]), jnp.array([1.0])) for x in (0.0, 4.0))
      >>> update_statistics(old, new, 0.75).mean.tolist()
      [1.0]
    """
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def match_statistics(
    x: Float[Array, "rows dim"], source: FeatureStatistics, target: FeatureStatistics
) -> Float[Array, "rows dim"]:
    r"""Map vectors from one mean and variance to another.

    .. math:: (x - \mu_s)\,\sigma_t/\sigma_s + \mu_t,\quad \sigma = \sqrt{\max(\text{variance}, 10^{-5})}

    Args:
      x: Vectors with the statistics ``source``.
      source: Statistics of ``x``.
      target: Statistics of the result; swap the two for the inverse.

    Returns:
      Vectors with the statistics ``target``.

    Example:
      >>> import jax.numpy as jnp
      >>> source = FeatureStatistics(jnp.array([0.0]), jnp.array([1.0]))
      >>> target = FeatureStatistics(jnp.array([5.0]), jnp.array([4.0]))
      >>> match_statistics(jnp.array([[1.0]]), source, target).tolist()
      [[7.0]]

    Source: Huh et al., ICML 2023 ("Straightening out the straight-through estimator").
    """
    source_scale, target_scale = (jnp.sqrt(jnp.maximum(s.variance, _MIN_VARIANCE)) for s in (source, target))
    return (x - source.mean[None]) * (target_scale / source_scale)[None] + target.mean[None]
