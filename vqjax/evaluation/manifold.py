"""Comparisons of two sets of features without a Gaussian: KID, precision and recall, density and coverage, copies."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vqjax.errors import UserError

Features = Float[np.ndarray, "_ _"]

_DISTANCES_AT_ONCE = 2**22


class KernelDistance(NamedTuple):
    """KID over random subsets.

    Attributes:
      mean: Mean over subsets, which is not biased by the number of images.
      deviation: Standard deviation over them.
    """

    mean: float
    deviation: float


def kernel_distance(
    x: Features, y: Features, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    r"""Compute KID, the unbiased squared maximum mean discrepancy with a cubic kernel.

    .. math:: k(a, b) = (a^T b / d + 1)^3

    Args:
      x: Features of one set.
      y: Those of another, by the same network.
      subsets: Number of random subsets of each set.
      subset_size: Images in a subset, drawn without replacement.
      seed: Seed of the draws.

    Returns:
      Mean and standard deviation over subsets. The mean may be slightly below zero.

    Raises:
      UserError: A set has fewer images than a subset, or a subset fewer than two.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(500, 8))
      >>> same = kernel_distance(x[:250], x[250:], subsets=10, subset_size=200)
      >>> other = kernel_distance(x[:250], x[250:] + 1, subsets=10, subset_size=200)
      >>> abs(same.mean) < 0.1 < other.mean
      True

    Source: Bińkowski et al., 2018 (arXiv 1801.01401).
    """
    _check_pair(x, y)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise UserError(
            f"subset_size must be from 2 to {min(len(x), len(y))}, the images of the smaller set, got {subset_size}."
        )
    random, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        a, b = (
            features[random.choice(len(features), subset_size, replace=False)].astype(np.float64) for features in (x, y)
        )
        within = [_kernel(part, part) for part in (a, b)]
        # Without the diagonal, where a kernel compares an image with itself.
        unlike = sum((k.sum() - np.trace(k)) / (subset_size * (subset_size - 1)) for k in within)
        values.append(unlike - 2 * _kernel(a, b).mean())
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel(a: Features, b: Features) -> Float[np.ndarray, "a b"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


class Manifold(NamedTuple):
    """Overlap of two sets of images.

    Attributes:
      precision: Share of the generated images that lie within the neighborhood of a real one.
      recall: Share of the real images that lie within the neighborhood of a generated one.
      density: Mean number of such neighborhoods of real images around a generated one, over ``neighbors``.
      coverage: Share of the real images with a generated one in their neighborhood.
      authenticity: Share of the generated images that are not copies: a copy is nearer to its nearest real image than
        any other real image is.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    authenticity: float


def precision_and_recall(real: Features, generated: Features, *, neighbors: int = 3) -> Manifold:
    """Compare two sets by the neighborhoods of their images, each a ball up to the k-th nearest of its own set.

    Args:
      real: Features of real images.
      generated: Those of generated images, by the same network.
      neighbors: Number k of neighbors; 3 for the published precision and recall, 5 for density and coverage.

    Raises:
      UserError: A set has no more images than ``neighbors``.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(100, 4))
      >>> precision_and_recall(x, x).recall, precision_and_recall(x, x + 100).precision
      (1.0, 0.0)

    Source: Kynkäänniemi et al., 2019 (arXiv 1904.06991); Naeem et al., 2020 (arXiv 2002.09797); Alaa et al., 2022
    (arXiv 2102.08921) for authenticity.
    """
    _check_pair(real, generated)
    largest = min(len(real), len(generated)) - 1
    if not 1 <= neighbors <= largest:
        raise UserError(f"neighbors must be from 1 to {largest}, one less than the smaller set has, got {neighbors}.")
    (to_next, around_real), (_, around_generated) = (_radii(features, neighbors) for features in (real, generated))
    real = real.astype(np.float64)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    balls = np.zeros(len(generated), np.int64)
    authentic = np.zeros(len(generated), bool)
    for rows in _slices(len(generated), len(real)):
        distances = _squared_distances(generated[rows], real)
        inside: Bool[np.ndarray, "rows real"] = distances <= around_real
        balls[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        nearest = distances.argmin(axis=1)
        authentic[rows] = distances[np.arange(len(nearest)), nearest] >= to_next[nearest]
        recalled |= (distances <= around_generated[rows, None]).any(axis=0)
    return Manifold(
        precision=float(np.mean(balls > 0)),
        recall=float(recalled.mean()),
        density=float(balls.mean() / neighbors),
        coverage=float(covered.mean()),
        authenticity=float(authentic.mean()),
    )


def _radii(features: Features, neighbors: int) -> Float[np.ndarray, "2 images"]:
    """Squared distances of each image to its nearest, and to its k-th nearest neighbor."""
    # In double precision one set at a time: for Inception it takes 16 kB an image.
    features, radii = features.astype(np.float64), np.empty((2, len(features)))
    for rows in _slices(len(features), len(features)):
        distances = _squared_distances(features[rows], features)
        # The nearest is the image itself.
        distances.partition((1, neighbors), axis=1)
        radii[:, rows] = distances[:, [1, neighbors]].T
    return radii


def _squared_distances(a: Features, b: Features) -> Float[np.ndarray, "a b"]:
    distances = a.astype(np.float64, copy=False) @ b.T
    # In place: a further array of this size for each operation is what an evaluation would hold at most.
    distances *= -2
    distances += np.einsum("ad,ad->a", a, a, dtype=np.float64)[:, None]
    distances += np.einsum("bd,bd->b", b, b, dtype=np.float64)
    return np.maximum(distances, 0.0, out=distances)


def _slices(rows: int, columns: int) -> list[slice]:
    """Parts of a matrix of distances that fit into memory."""
    height = max(1, _DISTANCES_AT_ONCE // columns)
    return [slice(start, start + height) for start in range(0, rows, height)]


def _check_pair(x: Features, y: Features) -> None:
    if x.shape[1:] != y.shape[1:]:
        raise UserError(f"Both sets must have features of one network, got {x.shape[1]} and {y.shape[1]} features.")
