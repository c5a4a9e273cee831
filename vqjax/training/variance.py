"""The variance of a dataset's pixels."""

import itertools

import numpy as np

from vqjax.data import ImageDataset, UnreadableImage
from vqjax.data.reading import read_many
from vqjax.errors import UserError

MOST_IMAGES = 4096


def pixel_variance(dataset: ImageDataset) -> float:
    """Measures the variance over all pixels and channels, with pixels in [-1, 1].

    Args:
      dataset: The training images; at most 4096, evenly spaced, are read.

    Returns:
      The variance, above zero.

    Raises:
      UserError: All pixels are equal.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> half_black = np.zeros((2, 8, 8, 3), np.uint8)
      >>> half_black[0] = 255
      >>> pixel_variance(ArrayDataset("half", half_black, image_size=8))
      1.0
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, MOST_IMAGES).astype(int))
    count, total, squares = 0, 0.0, 0.0
    for some in itertools.batched(rows.tolist(), 64):
        for image in read_many(dataset, some):
            if not isinstance(image, UnreadableImage):
                pixels = image.astype(np.float64) / 127.5 - 1
                count, total, squares = count + pixels.size, total + pixels.sum(), squares + np.square(pixels).sum()
    variance = squares / max(count, 1) - (total / max(count, 1)) ** 2
    if variance <= 1e-12:
        raise UserError(
            f"config.loss.divide_by_variance=True is not allowed: the pixels of {dataset.name} have no variance. "
            "Use other images, or False."
        )
    return float(variance)
