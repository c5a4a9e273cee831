"""Protocol of a data source: examples as dictionaries, with random access."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

Example = dict[str, np.ndarray | np.generic]
"""Element of a dataset: ``image``, uint8 ``[height, width, channels]``, or ``video``, uint8 ``[frames, height, width,
channels]``, or ``tokens`` of either, integers of one shape; and ``label``, int32 scalar, if it is known."""

Batch = dict[str, Array | np.ndarray]
"""Examples stacked along a leading axis, under the same names; in evaluation also ``valid``, bool ``[batch]``."""


@runtime_checkable
class ImageDataset(Protocol):
    """A finite sequence of examples whose images, or clips of videos, all have one shape.

    ``__getitem__`` is stateless, safe to call from several threads, and returns the same names for every index. It
    raises :class:`UnreadableImage` when that one image cannot be decoded.

    A source may also have

    * ``__getitems__(indices) -> list of examples``, if that is faster than one by one;
    * ``is_random = True`` and ``draw(index, generator) -> example``, if training is to see an example differently each
      time, by random crops or other parts of a video for example; such a dataset is streamed;
    * ``origin(index) -> str``, the file or row that an example comes from, for token files;
    * ``content(index) -> bytes``, what is stored of an image, and ``digests() -> uint64 [examples]``, checksums that
      are equal if contents are: see :func:`vqjax.data.duplicates.report_duplicates`;
    * ``stamp() -> str | None``, a text that changes when examples do, if reading all of them takes so long that the
      user's cache is to keep them: see :mod:`vqjax.data.decoded`.

    Attributes:
      name: Name in reports, such as ``"cifar10/test"``.
      class_names: The class that each label stands for; None if the examples have no ``label``.
    """

    if TYPE_CHECKING:
        # Whatever can be read will do: a field, a property, or None for all instances.
        @property
        def name(self) -> str: ...

        @property
        def class_names(self) -> Sequence[str] | None: ...

    else:
        name: str
        class_names: Sequence[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Splits(NamedTuple):
    """The examples to train on and those held out for evaluation."""

    train: ImageDataset
    eval: ImageDataset


class Joined:
    """Several datasets one after another, an :class:`ImageDataset`.

    Args:
      datasets: The datasets, whose examples have the same names and shapes.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> parts = [ArrayDataset(name, np.zeros((3, 8, 8, 3), np.uint8), image_size=8) for name in ("train", "eval")]
      >>> joined = Joined(parts)
      >>> joined.name, len(joined), joined.origin(5)
      ('train + eval', 6, 'images[2]')
    """

    def __init__(self, datasets: Sequence[ImageDataset]):
        self.name = " + ".join(dataset.name for dataset in datasets)
        self.class_names = datasets[0].class_names
        self._places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        dataset, place = self._places[index]
        return dataset[place]

    def origin(self, index: int) -> str:
        """Return the file or row that an example comes from."""
        return origin(*self._places[index])


def origin(dataset: ImageDataset, index: int) -> str:
    """Return the file or row that an example comes from; its number if the source does not say.

    Args:
      dataset: The examples.
      index: Index of one.
    """
    return dataset.origin(index) if hasattr(dataset, "origin") else f"{dataset.name}[{index}]"


def is_random(dataset: ImageDataset) -> bool:
    """Return whether training draws the examples of a dataset anew each time."""
    return getattr(dataset, "is_random", False)


def pixels_name(example: Mapping[str, Any]) -> str:
    """Return which entry of an example holds its pixels: ``video`` if there is one, else ``image``.

    Args:
      example: An example, or the shapes of one.

    Example:
      >>> pixels_name({"video": np.zeros((17, 8, 8, 3), np.uint8), "label": np.int32(3)})
      'video'
    """
    return "video" if "video" in example else "image"


def pixels_of[Pixels](example: Mapping[str, Pixels]) -> Pixels:
    """Return the image or the clip of an example or a batch.

    Args:
      example: Entries by name, with ``image`` or ``video``.

    Example:
      >>> pixels_of({"video": 3, "label": 1})
      3
    """
    return example[pixels_name(example)]


class UnreadableImage(Exception):
    """Error of one image, or video, that cannot be decoded.

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
