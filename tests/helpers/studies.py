"""Images for studies that are tiny."""

import numpy as np

from vqjax.data import Splits
from vqjax.data.arrays import ArrayDataset


def tiny_images(image_size: int) -> Splits:
    """Random pixels: 12 images to train on, 4 held out."""
    images = np.random.default_rng(0).integers(0, 256, (16, image_size, image_size, 3), np.uint8)
    train, evaluation = (
        ArrayDataset(name, part, image_size) for name, part in (("a", images[:12]), ("b", images[12:]))
    )
    return Splits(train, evaluation)
