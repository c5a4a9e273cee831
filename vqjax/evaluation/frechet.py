"""The Fréchet distance of two sets of features: FID, and its kin over other networks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vqjax.errors import UserError


class Moments(NamedTuple):
    """Number, mean and scatter of features, in double precision, which add up batch by batch.

    Attributes:
      count: Number of feature vectors.
      mean: Their mean.
      scatter: Sum of the outer products of the deviations from the mean.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> features = rng.normal(size=(100, 3))
      >>> whole = Moments.of(features)
      >>> parts = Moments.of(features[:30]).including(features[30:])
      >>> bool(np.allclose(whole.covariance, parts.covariance))
      True
    """

    count: int
    mean: Float[np.ndarray, " dim"]
    scatter: Float[np.ndarray, "dim dim"]

    @classmethod
    def none(cls) -> "Moments":
        """Return the moments of no features."""
        return cls(0, np.zeros(0), np.zeros((0, 0)))

    @classmethod
    def of(cls, features: Float[np.ndarray, "images dim"]) -> "Moments":
        """Return the moments of features; see :meth:`including`."""
        return cls.none().including(features)

    def including(self, features: Float[np.ndarray, "images dim"]) -> "Moments":
        """Return the moments of these features and more (Chan et al., 1979).

        Args:
          features: One vector per image, at least one.

        Raises:
          UserError: A feature is not finite; the message names the first such image.
        """
        features = np.asarray(features, np.float64)
        if not (finite := np.isfinite(features).all(axis=1)).all():
            raise UserError(f"features must be finite, got others in image {np.argmin(finite)} of {len(features)}.")
        mean = features.mean(axis=0)
        if not self.count:
            centered = features - mean
            return Moments(len(features), mean, centered.T @ centered)
        count, difference = self.count + len(features), mean - self.mean
        # The distance of the means as one more row: a single pass over a matrix of 32 MB for Inception.
        between = np.sqrt(self.count * len(features) / count) * difference
        rows = np.vstack([features - mean, between])
        scatter = rows.T @ rows
        scatter += self.scatter
        return Moments(count, self.mean + difference * (len(features) / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "dim dim"]:
        """The sample covariance, with divisor ``count - 1``."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Compute the squared Fréchet distance of two Gaussians with the moments of two sets.

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
      - 2\,\mathrm{tr}\,(\Sigma_a \Sigma_b)^{1/2}

    With :math:`\Sigma_a = A A^T` and :math:`\Sigma_b = B B^T` the last trace is the sum of the singular values of
    :math:`A^T B`, which is exact on singular covariances, too, where a root of the product is not.

    Args:
      a: Moments of the features of one set, at least two.
      b: Those of another.

    Returns:
      A distance, 0 for equal moments. It is biased upwards with fewer images than are needed for the covariance, which
      is singular below ``dim + 1`` of them.

    Raises:
      UserError: A set has fewer than two images, or the sets differ in the number of features.

    Example:
      >>> near = Moments(10, np.zeros(2), 9 * np.eye(2))
      >>> far = Moments(10, np.array([3.0, 4.0]), 9 * 4 * np.eye(2))
      >>> round(frechet_distance(near, far), 6)  # 25 + 2 (1 - 2)^2
      27.0

    Source: Dowson and Landau, 1982; Heusel et al., 2017 (arXiv 1706.08500).
    """
    for moments in (a, b):
        if moments.count < 2:
            raise UserError(f"A Fréchet distance needs at least 2 images on each side, got {moments.count}.")
    if a.mean.shape != b.mean.shape:
        raise UserError(f"Both sets must have features of one network, got {len(a.mean)} and {len(b.mean)} features.")
    squared = np.sum(np.square(a.mean - b.mean))
    roots = _root(a.covariance), _root(b.covariance)
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    # By the roots themselves, so that rounding cancels for equal sets.
    traces = sum(np.sum(np.square(root)) for root in roots)
    return max(0.0, float(squared + traces - 2 * cross))


def _root(covariance: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim dim"]:
    """A matrix whose product with its transpose is the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def inception_score(
    logits: Float[np.ndarray, "images classes"], splits: int = 10, seed: int = 2020
) -> tuple[float, float]:
    r"""Compute the Inception score of images, the mean and spread over parts of them.

    .. math:: \exp \mathrm{E}_x \mathrm{KL}\big(p(y|x)\,\|\,p(y)\big)

    Args:
      logits: Logits of each image.
      splits: Number of parts of equal size, in which the images are in random order.
      seed: Seed of that order.

    Returns:
      Mean and population standard deviation over the parts; at least 1, at most the number of classes.

    Raises:
      UserError: There are fewer images than parts.

    Example:
      >>> score, _ = inception_score(np.tile(100.0 * np.eye(4), (10, 1)), splits=1)
      >>> round(score, 4)
      4.0

    Source: Salimans et al., 2016 (arXiv 1606.03498); torch-fidelity for the order.
    """
    if not 1 <= splits <= len(logits):
        raise UserError(f"splits must be from 1 to {len(logits)}, the number of images, got {splits}.")
    logits = np.asarray(logits, np.float64)[np.random.RandomState(seed).permutation(len(logits))]
    scores = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits]
        shifted = part - part.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # A class that no image has contributes nothing.
        log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp(np.mean(np.sum(p * (log_p - log_mean), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
