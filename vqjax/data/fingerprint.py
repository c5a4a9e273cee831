"""Tells whether a dataset is still the one it was."""

import os
import zlib

import numpy as np

from vqjax.data.dataset import ImageDataset, UnreadableImage
from vqjax.data.reading import read_many

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
