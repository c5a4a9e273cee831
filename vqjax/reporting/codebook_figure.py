"""A picture of a codebook beside the vectors that it quantizes, while both move during training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vqjax.reporting.figures import BLUE, INK, ORANGE, new_figure

_SHOWN_VECTORS = 2000
_INCHES = 3.2


class Snapshot(NamedTuple):
    """Vectors and codes at one step of a training.

    Attributes:
      step: The step.
      vectors: What enters the quantizer, as it is compared with the codes.
      codes: The codebook.
      indices: Number of the code of each vector.
    """

    step: int
    vectors: Float[np.ndarray, "vectors dim"]
    codes: Float[np.ndarray, "codes dim"]
    indices: Int[np.ndarray, " vectors"]

    @property
    def counts(self) -> Int[np.ndarray, " codes"]:
        """Number of vectors of each code."""
        return np.bincount(self.indices, minlength=len(self.codes))

    @property
    def relative_error(self) -> float:
        """Mean squared distance of vectors to their codes, over the mean square of the vectors."""
        error = np.mean(np.square(self.vectors - self.codes[self.indices]))
        return float(error / np.mean(np.square(self.vectors)))

    @property
    def shift(self) -> float:
        """Distance of the mean of the vectors from that of the codes, over the root mean square of the vectors."""
        distance = np.linalg.norm(self.vectors.mean(axis=0) - self.codes.mean(axis=0))
        return float(distance / np.sqrt(np.mean(np.sum(np.square(self.vectors), axis=1))))


def codebook_figure(snapshots: Sequence[Snapshot], title: str) -> Any:
    """Draw vectors, codes, and codes in use over the steps of a training, and histograms of the last.

    All steps have the same two axes, the principal components of all vectors and codes together, so that what moves in
    the picture has moved. The histograms are of the vectors of each code, of the lengths of vectors and codes, and of
    the angles between vectors and their codes.

    Args:
      snapshots: In the order of their steps.
      title: Heading of the picture.

    Returns:
      A matplotlib figure.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> vectors, codes = rng.normal(size=(64, 4)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
      >>> snapshot = Snapshot(100, vectors, codes, rng.integers(0, 8, 64))
      >>> [axes.get_title() for axes in codebook_figure([snapshot], "quickstart").axes][0]
      'step 100: 8 of 8 codes'

    Source: the diagnosis of Huh et al., ICML 2023 (arXiv 2305.08842): vectors P move with each step, codes C only where
    they are chosen, so that Q, the codes in use, become few.
    """
    columns = max(3, len(snapshots))
    figure, axes = new_figure(_INCHES * columns, 2 * _INCHES, 2, columns)
    figure.suptitle(title)
    everything = np.concatenate([part for snapshot in snapshots for part in (snapshot.vectors, snapshot.codes)])
    center = everything.mean(axis=0)
    directions = np.linalg.svd(everything - center, full_matrices=False)[2][:2].T
    limits = _limits([(part - center) @ directions for snapshot in snapshots for part in (snapshot.vectors,)])
    for number, panel in enumerate(axes[0]):
        if number >= len(snapshots):
            panel.axis("off")
            continue
        snapshot = snapshots[number]
        points, codes = ((part - center) @ directions for part in (snapshot.vectors, snapshot.codes))
        used, largest = snapshot.counts > 0, snapshot.counts.max()
        shown = points[:: max(1, len(points) // _SHOWN_VECTORS)]
        panel.plot(*_columns(shown), ".", color="#bbbbbb", markersize=2, label="vectors (P)")
        panel.plot(*_columns(codes[~used]), "o", color=BLUE, markersize=4, fillstyle="none", label="codes (C)")
        sizes = 8 + 40 * snapshot.counts[used] / largest
        panel.scatter(*_columns(codes[used]), s=sizes, color=ORANGE, zorder=3, label="codes in use (Q)")
        panel.set(title=f"step {snapshot.step:,}: {used.sum():,} of {len(codes):,} codes", **limits)
        panel.set_xlabel(f"relative error {snapshot.relative_error:.3f}, means apart by {snapshot.shift:.2f}")
    axes[0][0].legend(loc="best", fontsize=7, markerscale=1)
    last = snapshots[-1]
    used = axes[1][0]
    used.step(np.arange(1, len(last.codes) + 1), np.sort(last.counts)[::-1], color=ORANGE, where="mid")
    used.set(yscale="symlog", xlabel="codes, the most used first", ylabel="vectors of a code", title="use")
    lengths = {name: np.linalg.norm(getattr(last, name), axis=1) for name in ("vectors", "codes")}
    ends = (0.0, max(map(np.max, lengths.values())))
    for name, color in (("vectors", "#999999"), ("codes", BLUE)):
        axes[1][1].hist(lengths[name], 40, range=ends, density=True, histtype="step", color=color, label=name)
    axes[1][1].set(xlabel="length", title="lengths", yticks=[])
    axes[1][1].legend(fontsize=7)
    axes[1][2].hist(_angles(last.vectors, last.codes[last.indices]), 40, range=(0, 180), color=INK)
    axes[1][2].set(xlabel="degrees between a vector and its code", title="angles", yticks=[])
    for panel in axes[1][3:]:
        panel.axis("off")
    return figure


def _columns(points: Float[np.ndarray, "points dims"]) -> tuple[np.ndarray, np.ndarray]:
    """Both coordinates; the second is zero where vectors have one feature."""
    return points[:, 0], points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))


def _limits(points: Sequence[Float[np.ndarray, "points dims"]]) -> dict[str, tuple[float, float]]:
    """Ends of the axes that hold nearly all vectors of all steps; few codes may lie beyond."""
    x, y = (np.concatenate(columns) for columns in zip(*map(_columns, points), strict=True))
    ends = {}
    for name, values in (("xlim", x), ("ylim", y)):
        low, high = np.quantile(values, (0.002, 0.998))
        margin = 0.1 * (high - low) or 1.0
        ends[name] = (float(low - margin), float(high + margin))
    return ends


def _angles(x: Float[np.ndarray, "rows dim"], y: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " rows"]:
    """Angles in degrees; 90 where one of the two has no length."""
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = np.sum(x * y, axis=1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))
