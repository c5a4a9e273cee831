"""Reading a dataset once, in order, with threads decoding ahead; unreadable images are left out and named."""

import math
import os
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import logging
from jaxtyping import UInt8
from tqdm import tqdm

from vqjax.data.dataset import ImageDataset, UnreadableImage
from vqjax.errors import UserError

# Below this many images reading takes about a second, too short for a bar to tell anything.
_IMAGES_WORTH_A_PROGRESS_BAR = 4000

READING_THREADS = min(16, 2 * (os.cpu_count() or 1))

# What a thread reads at a time: many small images, because handing work over costs more than decoding one of
# them, but few large ones, because the chunks wait in memory.
_CHUNK_BYTES = 2**20
_NAMED_FILES = 5


class UnreadableReport:
    """Names the first few unreadable images of a dataset as they turn up, and counts them all.

    Args:
        dataset_name: what the log lines call the dataset.

    Example:
        >>> report = UnreadableReport("holiday")
        >>> report.add(UnreadableImage("a.png", "empty file"))
        >>> report.count
        1
    """

    def __init__(self, dataset_name: str):
        self._dataset_name = dataset_name
        self._paths: set[str] = set()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The number of different unreadable images so far."""
        return len(self._paths)

    def add(self, error: UnreadableImage) -> None:
        """Counts an unreadable image, and names it if it is new and among the first five."""
        with self._lock:
            if error.path in self._paths:
                return
            self._paths.add(error.path)
            if self.count <= _NAMED_FILES:
                logging.warning("%s: skipped unreadable image %s", self._dataset_name, error)

    def summarize(self, total: int) -> None:
        """Logs how many of `total` images were skipped, if any were."""
        if self.count:
            logging.warning("%s: skipped %d unreadable images of %d", self._dataset_name, self.count, total)


def readable_images(dataset: ImageDataset) -> Iterator[UInt8[np.ndarray, "height width channels"]]:
    """Yields every readable image once, in dataset order.

    Args:
        dataset: the images.

    Yields:
        one image, uint8 in [0, 255].

    Raises:
        UserError: not one image can be read.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> len(list(readable_images(ArrayDataset("black", np.zeros((5, 4, 4, 3), np.uint8), image_size=4))))
        5
    """
    total = len(dataset)
    chunk = max(1, _CHUNK_BYTES // math.prod(image_shape(dataset)))
    chunks = (
        grain.MapDataset.range(0, total, chunk)
        .map(lambda start: read_many(dataset, range(start, min(start + chunk, total))))
        .to_iter_dataset(grain.ReadOptions(READING_THREADS, prefetch_buffer_size=2 * READING_THREADS))
    )
    report = UnreadableReport(dataset.name)
    iterator = iter(chunks)
    try:
        for images in iterator:
            for image in images:
                if isinstance(image, UnreadableImage):
                    report.add(image)
                else:
                    yield image
    finally:
        iterator.close()
    report.summarize(total)


def read_many(dataset: ImageDataset, indices: Sequence[int]) -> list[np.ndarray | UnreadableImage]:
    """Reads several images, all at once if the dataset can do that.

    Args:
        dataset: the images.
        indices: which ones.

    Returns:
        for every index the image, or the error if that image cannot be read.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> len(read_many(ArrayDataset("black", np.zeros((5, 4, 4, 3), np.uint8), image_size=4), [0, 3]))
        2
    """
    if hasattr(dataset, "__getitems__"):
        try:
            return dataset.__getitems__(indices)
        except UnreadableImage:
            pass  # one bad image must not cost its neighbors: read them one by one
    return [_image_or_error(dataset, index) for index in indices]


def image_shape(dataset: ImageDataset) -> tuple[int, int, int]:
    """Height, width and channels of a dataset's images, from the first one that can be read.

    Args:
        dataset: the images.

    Raises:
        UserError: not one image can be read.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> image_shape(ArrayDataset("black", np.zeros((5, 8, 8), np.uint8), image_size=4))
        (4, 4, 3)
    """
    for index in range(len(dataset)):
        image = _image_or_error(dataset, index)
        if not isinstance(image, UnreadableImage):
            return image.shape
    raise UserError(
        f"{dataset.name}: none of its {len(dataset)} images can be read; "
        "check config.data.name and replace damaged files"
    )


def _image_or_error(dataset: ImageDataset, index: int) -> np.ndarray | UnreadableImage:
    try:
        return dataset[index]
    except UnreadableImage as error:
        return error


def materialize(dataset: ImageDataset) -> UInt8[np.ndarray, "images height width channels"]:
    """Decodes a whole dataset into one array, leaving out (and naming) the images that cannot be read.

    Args:
        dataset: the images; all must fit into memory.

    Returns:
        the readable images in dataset order, uint8 in [0, 255].

    Raises:
        UserError: not one image can be read.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> materialize(ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=4)).shape
        (5, 4, 4, 3)
    """
    # grain takes half a second to import, and whoever only names the protocol above does not need it.
    from vqjax.data.reading import image_shape, readable_images

    total = len(dataset)
    images = np.empty((total, *image_shape(dataset)), np.uint8)
    # None shows the bar on a terminal only.
    hide_bar = None if total >= _IMAGES_WORTH_A_PROGRESS_BAR else True
    readable = readable_images(dataset)
    count = 0
    for image in tqdm(readable, f"reading {dataset.name}", total, unit="image", disable=hide_bar):
        images[count] = image
        count += 1
    return images[:count]
