"""Variance of a dataset's pixels, and a fingerprint of its images."""

import itertools
import os
import zlib

import numpy as np

from vqjax.data.dataset import ImageDataset, UnreadableImage, pixels_name
from vqjax.data.decoded import read_decoded
from vqjax.data.reading import example_spec, read_many
from vqjax.errors import UserError

MOST_IMAGES = 4096
"""Images that the variance is measured on, at most."""


def pixel_variance(dataset: ImageDataset) -> float:
    """Measure the variance over all pixels and channels, with pixels in [-1, 1].

    Args:
      dataset: The training images; at most 4096, or clips of so many frames together, evenly spaced, are read.

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
    spec = example_spec(dataset)
    name = pixels_name(spec)
    images = spec[name].shape[0] if name == "video" else 1
    rows = np.unique(np.linspace(0, len(dataset) - 1, max(1, MOST_IMAGES // images)).astype(int))
    count, total, squares = 0, 0.0, 0.0
    decoded = read_decoded(dataset)
    for some in itertools.batched(rows.tolist(), 64):
        examples = read_many(dataset, some) if decoded is None else [{name: decoded[name][row]} for row in some]
        for example in examples:
            if not isinstance(example, UnreadableImage):
                pixels = example[name].astype(np.float64) / 127.5 - 1
                count, total, squares = count + pixels.size, total + pixels.sum(), squares + np.square(pixels).sum()
    variance = squares / max(count, 1) - (total / max(count, 1)) ** 2
    if variance <= 1e-12:
        raise UserError(
            f"config.loss.divide_by_variance must be False for images without variance, got True for {dataset.name}; "
            "use different images, or False."
        )
    return float(variance)


def fingerprint(dataset: ImageDataset, images: int = 16) -> str:
    """Describe a dataset by the number of its images and a checksum of some of them, evenly spaced, and their labels.

    Args:
      dataset: The images.
      images: Number of images in the checksum, if there are so many.

    Returns:
      A short text, the same for the same images and labels in the same order.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> fingerprint(ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8))
      '5 images, checksum 38e2007b'
    """
    checksum = 0
    rows = np.unique(np.linspace(0, len(dataset) - 1, images).astype(int))
    for example in read_many(dataset, rows.tolist()):
        if isinstance(example, UnreadableImage):
            # Not by the whole path, as the directory may move.
            checksum = zlib.crc32(os.fsencode(os.path.basename(example.path)), checksum)
        else:
            for name in sorted(example):
                checksum = zlib.crc32(example[name].tobytes(), checksum)
    return f"{len(dataset)} images, checksum {checksum:08x}"
