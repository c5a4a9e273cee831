"""Reference statistics: mean and covariance of the features of a set of images, in a file that NumPy reads."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqjax.errors import UserError, one_line
from vqjax.evaluation.frechet import Moments
from vqjax.importing.torch_file import read_torch_file
from vqjax.runtime.files import atomic_file, file_checksum, strict_json
from vqjax.runtime.paths import local_path

# Files of guided diffusion hold images as well.
_NAMES = ("mu", "sigma", "mu_s", "sigma_s", "count", "context")


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the features of a set of images, and what is known of it.

    Attributes:
      pool: Moments of one vector per image.
      spatial: Moments of the features of sFID; none if they are not there.
      context: Facts, such as ``dataset``, ``split`` and ``features``; empty for files of other tools.
      described: The images, for protocols.
    """

    pool: Moments
    spatial: Moments = dataclasses.field(default_factory=Moments.none)
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    described: str = "other images"


def save_statistics(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Write statistics as an .npz, with the names of pytorch-fid and of guided diffusion.

    Args:
      path: The file; an older one is replaced atomically.
      statistics: Of at least two images; the context is stored as JSON.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/statistics.npz"
      >>> save_statistics(path, Statistics(Moments(3, np.zeros(2), np.eye(2)), context={"dataset": "none"}))
      >>> load_statistics(path).pool.covariance.tolist(), load_statistics(path).context
      ([[0.5, 0.0], [0.0, 0.5]], {'dataset': 'none'})
    """
    pool, spatial = statistics.pool, statistics.spatial
    arrays = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial.count > 1:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with atomic_file(local_path(path)) as file:
        np.savez(file, **arrays, count=np.int64(pool.count), context=np.array(strict_json(dict(statistics.context))))


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read statistics of :func:`save_statistics`, of pytorch-fid and guided diffusion, or of torch-fidelity.

    Args:
      path: An .npz with ``mu`` and ``sigma``, or a .pt of torch-fidelity's cache. Nothing in it is executed.

    Returns:
      The statistics; where the file does not say the number of images, it is 2, which no distance depends on.

    Raises:
      UserError: The file holds no such statistics.
    """
    path = local_path(path, "statistics")
    try:
        arrays = read_torch_file(path) if path.suffix == ".pt" else _read_npz(path)
        count = int(arrays["count"]) if "count" in arrays else 2
        context = json.loads(str(arrays["context"])) if "context" in arrays else {}
        moments = {
            part: [np.asarray(arrays[f"{name}{part}"], np.float64) for name in ("mu", "sigma")]
            for part in ("", "_s")
            if not part or f"mu{part}" in arrays
        }
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(
            f"{path} must hold the arrays mu and sigma ({one_line(error)}); pass an .npz of vqjax stats, pytorch-fid "
            "or guided diffusion, or a .pt of torch-fidelity."
        ) from error
    for mean, covariance in moments.values():
        fits = mean.ndim == 1 and covariance.shape == 2 * mean.shape and isinstance(context, dict)
        if not fits or not all(np.isfinite(of).all() for of in (mean, covariance)) or count < 2:
            raise UserError(
                f"{path} must hold a finite mean and covariance of at least 2 images, got shapes {mean.shape} and "
                f"{covariance.shape}; measure the images again."
            )
    pool, *spatial = (Moments(count, mean, covariance * (count - 1)) for mean, covariance in moments.values())
    return Statistics(pool, *spatial, context=context, described=f"{path.name} (SHA-256 {file_checksum(path)[:8]})")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # Not by its path, as NumPy leaves a file open that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays if name in _NAMES}


def check_features(statistics: Statistics, identity: str, size: int) -> None:
    """Refuse statistics of other features than those that they are to be compared with.

    Args:
      statistics: The statistics.
      identity: Network, weights and scaling, as ``features_identity`` in the context of :func:`save_statistics`.
      size: Number of features.

    Raises:
      UserError: They were measured in another way, or have another number of features.

    Example:
      >>> check_features(Statistics(Moments(3, np.zeros(2), np.eye(2))), "a network", 2)
    """
    if (measured := statistics.context.get("features_identity", identity)) != identity:
        raise UserError(
            f"{statistics.described} must be of the same features, got {measured} there and {identity} here; measure "
            "it again with vqjax stats and the same --features and --scaling."
        )
    if len(statistics.pool.mean) != size:
        raise UserError(
            f"{statistics.described} must be of the same network, got {len(statistics.pool.mean)} features there and "
            f"{size} here; measure it again with vqjax stats."
        )
