"""Every image of a split once, in order, in batches of one shape."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, UInt8

from vqjax.data.dataset import ImageDataset
from vqjax.data.reading import readable_images


def evaluation_batches(
    dataset: ImageDataset, batch_size: int
) -> Iterator[tuple[UInt8[np.ndarray, "batch height width channels"], Bool[np.ndarray, " batch"]]]:
    """Yields the readable images of a dataset in order; what is missing in the last batch is black and not valid.

    Args:
        dataset: the images; unreadable ones are named, counted and take no place.
        batch_size: images per batch.

    Yields:
        images, uint8 in [0, 255], and which of them are images of the dataset.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> dataset = ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8)
        >>> [valid.tolist() for _, valid in evaluation_batches(dataset, batch_size=3)]
        [[True, True, True], [True, True, False]]
    """
    for group in itertools.batched(readable_images(dataset), batch_size):
        images = np.zeros((batch_size, *group[0].shape), np.uint8)
        images[: len(group)] = group
        yield images, np.arange(batch_size) < len(group)
