"""Reading a dataset once, in order, with threads that decode ahead."""

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from vqjax.data.dataset import Example, ImageDataset, UnreadableImage, pixels_name
from vqjax.data.decoded import read_decoded, write_decoded
from vqjax.errors import UserError

# Fewer images are read within about a second.
_IMAGES_WORTH_A_PROGRESS_BAR = 4000

READING_THREADS = min(16, 2 * (os.cpu_count() or 1))

# What a thread reads at a time: many small images, because handing work over costs more than decoding one of
# them, but few large ones, because the chunks wait in memory.
_CHUNK_BYTES = 2**20
_NAMED_FILES = 5


class UnreadableReport:
    """Log of the unreadable images of a dataset: the first few by name, and their number.

    Args:
      dataset_name: Name of the dataset in the log.
      kind: What they are.

    Example:
      >>> report = UnreadableReport("holiday")
      >>> report.add(UnreadableImage("a.png", "empty file"))
      >>> report.count
      1
    """

    def __init__(self, dataset_name: str, kind: str = "image"):
        self._dataset_name, self._kind = dataset_name, kind
        self._paths: set[str] = set()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of different unreadable images so far."""
        return len(self._paths)

    def add(self, error: UnreadableImage) -> None:
        """Count an unreadable image, and log it if it is new and among the first five."""
        with self._lock:
            if error.path in self._paths:
                return
            self._paths.add(error.path)
            if self.count <= _NAMED_FILES:
                logging.warning("%s: skipped unreadable %s %s", self._dataset_name, self._kind, error)

    def summarize(self, total: int) -> None:
        """Log how many of ``total`` images were skipped, if any were."""
        if self.count:
            logging.warning("%s: skipped %d unreadable %ss of %d", self._dataset_name, self.count, self._kind, total)


def readable_examples(dataset: ImageDataset, start: int = 0) -> Iterator[tuple[int, Example]]:
    """Yield every readable example once, in dataset order; the others are logged.

    Args:
      dataset: The examples.
      start: Index of the first one.

    Yields:
      The index of an example in the dataset, and the example.

    Raises:
      UserError: No image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> len(list(readable_examples(ArrayDataset("black", np.zeros((5, 4, 4, 3), np.uint8), image_size=4))))
      5
    """
    total = len(dataset)
    chunk = max(1, _CHUNK_BYTES // bytes_per_example(dataset))
    chunks = (
        grain.MapDataset.range(start, total, chunk)
        .map(lambda start: read_many(dataset, range(start, min(start + chunk, total))))
        .to_iter_dataset(grain.ReadOptions(READING_THREADS, prefetch_buffer_size=2 * READING_THREADS))
    )
    spec = example_spec(dataset)
    report = UnreadableReport(dataset.name, pixels_name(spec))
    iterator = iter(chunks)
    try:
        for index, example in enumerate(itertools.chain.from_iterable(iterator), start):
            if isinstance(example, UnreadableImage):
                report.add(example)
                continue
            for name, entry in spec.items():
                # If it were written into a larger array, it would be repeated until it fits.
                if np.shape(example.get(name)) != entry.shape:
                    raise UserError(
                        f"{dataset.name}: `{name}` must have one shape in all examples, {entry.shape} as in the first, "
                        f"got {np.shape(example.get(name))} in example {index}."
                    )
            yield index, example
    finally:
        iterator.close()
    report.summarize(total)


def read_many(
    dataset: ImageDataset, indices: Sequence[int], generators: Sequence[np.random.Generator] | None = None
) -> list[Example | UnreadableImage]:
    """Read several examples, all at once if the dataset can do that.

    Args:
      dataset: The examples.
      indices: Their indices.
      generators: One for each example, if it is to be drawn at random.

    Returns:
      For every index the example, or the error if it cannot be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> len(read_many(ArrayDataset("black", np.zeros((5, 4, 4, 3), np.uint8), image_size=4), [0, 3]))
      2
    """
    if generators is not None:
        drawn = zip(indices, generators, strict=True)
        return [_example_or_error(dataset.draw, index, generator) for index, generator in drawn]
    if hasattr(dataset, "__getitems__"):
        try:
            return dataset.__getitems__(indices)
        except UnreadableImage:
            pass  # one bad image must not cost its neighbors: read them one by one
    return [_example_or_error(dataset.__getitem__, index) for index in indices]


def example_spec(dataset: ImageDataset) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of each entry of a dataset's examples, from the first one that can be read.

    Args:
      dataset: The examples.

    Raises:
      UserError: No image can be read, or an example is not one.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> example_spec(ArrayDataset("black", np.zeros((5, 8, 8), np.uint8), image_size=4))["image"].shape
      (4, 4, 3)
    """
    for index in range(len(dataset)):
        example = _example_or_error(dataset.__getitem__, index)
        if not isinstance(example, UnreadableImage):
            _check_example(dataset, example)
            return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in example.items()}
    raise UserError(
        f"{dataset.name}: none of its {len(dataset)} images can be read; "
        "check config.data.name and replace damaged files."
    )


def has_clips(dataset: ImageDataset) -> bool:
    """Return whether the examples of a dataset are clips of videos.

    Args:
      dataset: The examples.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> has_clips(ArrayDataset("black", np.zeros((5, 8, 8), np.uint8), image_size=4))
      False
    """
    return "video" in example_spec(dataset)


def bytes_per_example(dataset: ImageDataset) -> int:
    """Return the bytes of one example's arrays.

    Args:
      dataset: The examples.

    Raises:
      UserError: No image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> bytes_per_example(ArrayDataset("black", np.zeros((5, 8, 8), np.uint8), image_size=4))
      48
    """
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in example_spec(dataset).values())


def _check_example(dataset: ImageDataset, example: Example) -> None:
    """Refuse what a source of one's own may return in the place of an image, a video, or its tokens, and a label."""
    tokens, label = example.get("tokens"), example.get("label", np.int32(0))
    name = pixels_name(example)
    pixels, axes = example.get(name), ["frames"] * (name == "video") + ["height", "width", "channels"]
    if tokens is not None and not (np.issubdtype(tokens.dtype, np.integer) and tokens.ndim):
        raise UserError(f"{dataset.name}: `tokens` must be integers, got {tokens.dtype} of shape {tokens.shape}.")
    if tokens is None and (getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim != len(axes)):
        found = f"{pixels.dtype} of shape {pixels.shape}" if hasattr(pixels, "dtype") else type(pixels).__name__
        raise UserError(f"{dataset.name}: `{name}` must be uint8 of shape [{', '.join(axes)}], got {found}.")
    if not np.issubdtype(getattr(label, "dtype", np.object_), np.integer) or label.shape:
        raise UserError(f"{dataset.name}: `label` must be an integer scalar such as numpy.int32(3), got {label!r}.")
    classes = dataset.class_names
    if classes is not None and "label" in example and not 0 <= label < len(classes):
        # Data sets mark what has no label so.
        raise UserError(
            f"{dataset.name}: `label` must be in [0, {len(classes)}), the number of classes, got {label}; use a split "
            "with labels."
        )


def _example_or_error(read: Callable[..., Example], *arguments: Any) -> Example | UnreadableImage:
    try:
        return read(*arguments)
    except UnreadableImage as error:
        return error


def materialize(dataset: ImageDataset) -> Example:
    """Decode a whole dataset into one array per entry; images that cannot be read are logged and skipped.

    If the user's cache has the arrays of an earlier call, these are returned.

    Args:
      dataset: The examples; all must fit into memory.

    Returns:
      The readable examples in dataset order, stacked: ``image``, uint8 ``[examples, height, width, channels]``,
      ``video``, uint8 ``[examples, frames, height, width, channels]``, or ``tokens``, and ``label``, int32
      ``[examples]``, if the dataset has labels.

    Raises:
      UserError: No image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> materialize(ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=4))["image"].shape
      (5, 4, 4, 3)
    """
    if (decoded := read_decoded(dataset)) is not None:
        return decoded
    total = len(dataset)
    stacked = {name: np.empty((total, *spec.shape), spec.dtype) for name, spec in example_spec(dataset).items()}
    # None shows the bar on a terminal only.
    hide_bar = None if total >= _IMAGES_WORTH_A_PROGRESS_BAR else True
    count = 0
    for _, example in tqdm(
        readable_examples(dataset), f"reading {dataset.name}", total, unit="image", disable=hide_bar
    ):
        for name, value in example.items():
            stacked[name][count] = value
        count += 1
    if count == total:
        write_decoded(dataset, stacked)
    return {name: values[:count] for name, values in stacked.items()}
