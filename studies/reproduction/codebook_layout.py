"""A codebook in the plane, by t-SNE, in the same layout from epoch to epoch."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float

from studies.reproduction.training import Snapshot
from vqjax.errors import UserError
from vqjax.reporting import atomic_file, strict_json

_PERPLEXITY = 30.0
_LEARNING_RATE = 200.0
_ITERATIONS = 1000
_DECIMALS = 2


def lay_out(path: Path, snapshot: Snapshot) -> None:
    """Writes where each code lies in the plane, and how many test tokens chose it.

    Each epoch starts from the layout of the one before, so that a code stays where it was unless it has moved.

    Args:
      path: The file, ``NAME--epochN.json``; those of earlier epochs are beside it.
      snapshot: Of the codebook.

    Raises:
      UserError: scikit-learn is not installed.
    """
    layout = _tsne(snapshot.codes, _layout_before(path, snapshot.epoch))
    content = {"layout": np.round(layout, _DECIMALS).tolist(), "counts": snapshot.counts.astype(int).tolist()}
    with atomic_file(path) as file:
        file.write(strict_json(content).encode() + b"\n")


def _layout_before(path: Path, epoch: int) -> Float[np.ndarray, "codes 2"] | None:
    name = re.sub(r"\d+\.json$", "", path.name)
    epochs = [int(match[1]) for other in path.parent.glob(f"{name}*.json") if (match := _EPOCH.search(other.name))]
    earlier = [number for number in epochs if number < epoch]
    if not earlier:
        return None
    return np.asarray(json.loads((path.parent / f"{name}{max(earlier)}.json").read_text())["layout"], np.float32)


def require_layout() -> ModuleType:
    """Imports what lays a codebook out.

    Returns:
      ``sklearn.manifold``.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module("sklearn.manifold")
    except ImportError as error:
        raise UserError('t-SNE needs scikit-learn, which is not installed: pip install "vqjax[plots]"') from error


def _tsne(codes: Float[np.ndarray, "codes dim"], start: np.ndarray | None) -> Float[np.ndarray, "codes 2"]:
    reduced = require_layout().TSNE(
        perplexity=min(_PERPLEXITY, (len(codes) - 1) / 3),
        learning_rate=_LEARNING_RATE,
        max_iter=_ITERATIONS,
        # t-SNE begins small and unfolds: with the spread that it ended with, nothing would move any more.
        init="random" if start is None else start / np.std(start[:, 0]) * 1e-4,
        random_state=42,
    )
    return reduced.fit_transform(codes)


_EPOCH = re.compile(r"--epoch(\d+)\.json$")
