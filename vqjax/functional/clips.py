"""Clips as images: frames as a batch, and filmstrips."""

import numpy as np
from jaxtyping import Array, Int, Shaped


def frames_of(
    clips: Shaped[Array | np.ndarray, "batch frames height width channels"],
) -> Shaped[Array | np.ndarray, "images height width channels"]:
    """Return the frames of all clips as one batch of images.

    Args:
      clips: Clips.

    Example:
      >>> frames_of(np.zeros((2, 5, 8, 8, 3))).shape
      (10, 8, 8, 3)
    """
    return clips.reshape(-1, *clips.shape[2:])


def filmstrips(
    clips: Shaped[Array | np.ndarray, "batch frames height width channels"], count: int
) -> Shaped[Array | np.ndarray, "batch height strip channels"]:
    """Lay frames of each clip, at equal distances from the first to the last, side by side.

    Args:
      clips: Clips.
      count: Number of frames that are shown.

    Example:
      >>> filmstrips(np.arange(5).reshape(1, 5, 1, 1, 1), count=3).ravel().tolist()
      [0, 2, 4]
    """
    batch, frames, height, _, channels = clips.shape
    chosen = np.linspace(0, frames - 1, count).round().astype(int)
    return clips[:, chosen].swapaxes(1, 2).reshape(batch, height, -1, channels)


def tokens_of_filmstrips(
    indices: Int[Array | np.ndarray, "batch frames rows columns *levels"],
) -> Int[Array | np.ndarray, "batch rows strip *levels"]:
    """Return the indices of clips as those of filmstrips, with a frame for each grid of indices.

    Args:
      indices: Indices of clips.

    Example:
      >>> tokens_of_filmstrips(np.arange(8).reshape(1, 2, 2, 2)).tolist()
      [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    batch, _, rows, *_ = indices.shape
    return indices.swapaxes(1, 2).reshape(batch, rows, -1, *indices.shape[4:])
