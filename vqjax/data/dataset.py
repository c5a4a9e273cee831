"""Protocol of a data source: examples as dictionaries, with random access."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

Example = dict[str, np.ndarray | np.generic]
"""Element of a dataset: ``image``, uint8 ``[height, width, channels]``, and ``label``, int32 scalar, if it is known."""

Batch = dict[str, Array | np.ndarray]
"""Examples stacked along a leading axis, under the same names; in evaluation also ``valid``, bool ``[batch]``."""


@runtime_checkable
class ImageDataset(Protocol):
    """A finite sequence of examples whose images all have one shape.

    ``__getitem__`` is stateless, safe to call from several threads, and returns the same names for every index. It
    raises :class:`UnreadableImage` when that one image cannot be decoded. A source that reads many examples faster than
    one by one may also have ``__getitems__(indices) -> list of examples``.

    Attributes:
      name: Name in reports, such as ``"cifar10/test"``.
      class_names: The class that each label stands for; None if the examples have no ``label``.
    """

    name: str
    class_names: Sequence[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Splits(NamedTuple):
    """The examples to train on and those held out for evaluation."""

    train: ImageDataset
    eval: ImageDataset


class UnreadableImage(Exception):
    """Error of one image that cannot be decoded.

    Attributes:
      path: File, or place in the dataset.
      reason: Message of the decoder, in one line.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        # A name may hold line breaks, and bytes that are not text.
        name = self.path if self.path.isprintable() else repr(self.path)
        return f"{name}: {self.reason}"
