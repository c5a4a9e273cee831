"""The variance of a dataset's pixels."""

import itertools
import os
import zlib

import numpy as np

from vqjax.data.dataset import ImageDataset, UnreadableImage
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


_LOOKED_AT = 16


def fingerprint(dataset: ImageDataset) -> str:
    """Describes a dataset by the number of its images and a checksum of a few, evenly spaced.

    Args:
        dataset: the images.

    Returns:
        a short text that is the same for the same images in the same order.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> fingerprint(ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8))
        '5 images, checksum 38e2007b'
    """
    checksum = 0
    rows = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int))
    for image in read_many(dataset, rows.tolist()):
        content = os.fsencode(image.path) if isinstance(image, UnreadableImage) else image.tobytes()
        checksum = zlib.crc32(content, checksum)
    return f"{len(dataset)} images, checksum {checksum:08x}"
