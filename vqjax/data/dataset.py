"""Protocol of an image source."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, UInt8

Batch = dict[str, Array | np.ndarray]


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
