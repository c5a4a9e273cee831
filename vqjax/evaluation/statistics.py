"""Reference statistics: mean and covariance of the features of a set of images, in a file that NumPy reads."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.errors import UserError, one_line
from vqjax.evaluation.frechet import Moments
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import local_path


def save_statistics(path: str | os.PathLike[str], moments: Moments, context: Mapping[str, Any]) -> None:
    """Write the moments of features as an .npz with ``mu`` and ``sigma``, as pytorch-fid has it.

    Args:
      path: The file; an older one is replaced atomically.
      moments: Moments of at least two images.
      context: What was measured, and how; stored as JSON.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/statistics.npz"
      >>> save_statistics(path, Moments(3, np.zeros(2), np.eye(2)), {"dataset": "none"})
      >>> load_statistics(path).covariance.tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    with atomic_file(local_path(path)) as file:
        np.savez(
            file,
            mu=moments.mean,
            sigma=moments.covariance,
            count=np.int64(moments.count),
            context=np.array(strict_json(dict(context))),
        )


def load_statistics(path: str | os.PathLike[str]) -> Moments:
    """Read statistics of :func:`save_statistics`, of pytorch-fid, or of guided diffusion (``mu`` and ``sigma``).

    Args:
      path: The file. Nothing in it is executed.

    Returns:
      The moments; where the file does not say the number of images, it is 2, which no distance depends on.

    Raises:
      UserError: The file holds no such statistics.
    """
    path = local_path(path, "statistics")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            count = int(arrays["count"]) if "count" in arrays else 2
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{path} must hold the arrays mu and sigma ({one_line(error)}); pass an .npz of vqjax stats, pytorch-fid "
            "or guided diffusion."
        ) from error
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not np.isfinite(covariance).all() or count < 2:
        raise UserError(
            f"{path} must hold a finite mean and covariance of at least 2 images, got shapes {mean.shape} and "
            f"{covariance.shape}; measure the images again."
        )
    return Moments(count, mean, covariance * (count - 1))
