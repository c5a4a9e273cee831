"""What every image source looks like, and reading a whole source into memory."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

# Below this many images reading takes about a second, too short for a bar to tell anything.
_IMAGES_WORTH_A_PROGRESS_BAR = 4000


@runtime_checkable
class ImageDataset(Protocol):
    """A finite sequence of equally large RGB images with random access.

    `__getitem__` is stateless and safe to call from several threads; it raises `UnreadableImage` when that one
    image cannot be decoded. A source that reads many images faster than one by one may also have
    `__getitems__(indices) -> list of images`.

    Attributes:
        name: what reports call the images, such as "cifar10/test".
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width channels"]: ...


class Splits(NamedTuple):
    """The images to train on and those held out to evaluate on."""

    train: ImageDataset
    heldout: ImageDataset


class UnreadableImage(Exception):
    """One image of a dataset cannot be decoded.

    Attributes:
        path: the file, or the place in the dataset.
        reason: what the decoder said, in one line.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        # A name may hold line breaks, and bytes that are no text.
        name = self.path if self.path.isprintable() else repr(self.path)
        return f"{name}: {self.reason}"


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
