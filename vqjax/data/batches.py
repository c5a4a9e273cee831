"""Order and composition of batches: a pure function of the seed and the step."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, Int32

from vqjax.data.dataset import Batch, Example, ImageDataset, UnreadableImage
from vqjax.data.reading import read_many, readable_examples
from vqjax.errors import UserError

PARAMETERS_AXIS = "parameters"
"""Axis of a mesh whose devices share parameters as well as batches."""


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Int32[np.ndarray, " batch"]:
    """Return the indices of the images of one training step.

    Every epoch is a new permutation of all images; the images that do not fill a last batch are dropped, other
    ones each epoch. Because nothing but the arguments matters, a resumed run needs no saved data position.

    Args:
      seed: Seed of the run.
      step: Training step, from 0.
      batch_size: Images per step.
      num_images: Images in the dataset.

    Returns:
      Indices in [0, num_images), none of them twice in one epoch.

    Raises:
      UserError: A batch is larger than the dataset.

    Example:
      >>> first, second = (batch_indices(0, step, batch_size=2, num_images=4) for step in (0, 1))
      >>> sorted([*first.tolist(), *second.tolist()])
      [0, 1, 2, 3]
    """
    if batch_size > num_images:
        raise UserError(
            f"batch_size must be at most {num_images}, the number of training images, got {batch_size}; "
            "use a smaller batch or more data."
        )
    epoch, batch = divmod(step, num_images // batch_size)
    return _permutation(seed, epoch, num_images)[batch * batch_size : (batch + 1) * batch_size]


# Two, because several threads may read the end of one epoch and the start of the next at the same time.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> Int32[np.ndarray, " images"]:
    key = np.array([seed % 2**64, epoch], np.uint64)
    permutation = np.random.Generator(np.random.Philox(key=key)).permutation(num_images).astype(np.int32)
    permutation.setflags(write=False)
    return permutation


def hold_out(
    num_images: int, eval_fraction: float, *, name: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " eval"]]:
    """Divide indices at random, the same way every time, into those to train on and those held out.

    Args:
      num_images: Number of images.
      eval_fraction: Share to hold out, in (0, 1); at least one image lands on either side.
      name: Name of the collection, for the error message.

    Returns:
      The training indices and the held-out ones, each in rising order.

    Raises:
      UserError: The fraction is out of range, or a single image would have to be divided.

    Example:
      >>> train, evaluation = hold_out(10, 0.2, name="holiday")
      >>> len(train), len(evaluation), sorted([*train, *evaluation]) == list(range(10))
      (8, 2, True)
    """
    if not 0 < eval_fraction < 1:
        raise UserError(
            f"config.data.eval_fraction must be between 0 and 1, got {eval_fraction}; use 0.1 to hold out a tenth."
        )
    if num_images < 2:
        raise UserError(
            f"config.data.name={name!r} must have at least 2 readable images, one each for training and evaluation, "
            f"got {num_images}; add images."
        )
    num_eval = min(max(1, round(num_images * eval_fraction)), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(key=0)).permutation(num_images)
    return np.sort(shuffled[num_eval:]), np.sort(shuffled[:num_eval])


def check_batch_size(batch_size: int, num_images: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Check that the devices can share a batch equally, and that the data can fill it.

    Args:
      batch_size: Images per step, over all devices.
      num_images: Images in the training data.
      mesh: Devices, along the axis ``data``.
      microbatches: Parts of a batch, each of which the devices share.

    Raises:
      UserError: The batch size does not fit.

    Example:
      >>> import jax
      >>> check_batch_size(8, 100, jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    """
    devices = num_parts(mesh)
    multiple = devices * microbatches
    if batch_size < 1 or batch_size % multiple:
        nearest = max(1, round(batch_size / multiple)) * multiple
        in_parts = f" in {microbatches} parts" if microbatches > 1 else ""
        raise UserError(
            f"batch_size must be a positive multiple of {multiple} to be divided over {devices} devices{in_parts}, "
            f"got {batch_size}; use {nearest}."
        )
    if batch_size > num_images:
        raise UserError(
            f"batch_size must be at most {num_images}, the number of training images, got {batch_size}; "
            "use a smaller batch or more data."
        )


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Return the axes of a mesh over which batches are divided: ``data``, and ``parameters`` if it has one.

    Args:
      mesh: Devices.

    Example:
      >>> import jax
      >>> batch_axes(jax.make_mesh((1, 1), ("data", "codes"), axis_types=(jax.sharding.AxisType.Auto,) * 2))
      ('data',)
    """
    return tuple(name for name in ("data", PARAMETERS_AXIS) if name in mesh.shape)


def num_parts(mesh: Mesh) -> int:
    """Return into how many parts a mesh divides a batch.

    Args:
      mesh: Devices.

    Example:
      >>> import jax
      >>> num_parts(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
      1
    """
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


def step_batches_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays ``[steps, batch, ...]`` that divides each step's batch over the devices.

    Args:
      mesh: Devices, along the axes of :func:`batch_axes`.

    Example:
      >>> import jax
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> step_batches_sharding(mesh).spec[1]
      'data'
    """
    return NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh)))


def stack(examples: Sequence[Example]) -> Example:
    """Stack the entries of several examples along a leading axis.

    Args:
      examples: Examples with the same names and shapes, at least one.

    Example:
      >>> stack([{"label": np.int32(3)}, {"label": np.int32(5)}])["label"].tolist()
      [3, 5]
    """
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def first_epoch_batches(dataset: ImageDataset, seed: int, batch_size: int) -> Iterator[Batch]:
    """Yield whole batches of the first epoch in training order, from the readable images alone.

    Args:
      dataset: The examples.
      seed: Seed of the order.
      batch_size: Images per batch.

    Yields:
      Stacked examples; a single smaller batch if fewer images can be read than one holds.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> dataset = ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8)
      >>> [len(batch["image"]) for batch in first_epoch_batches(dataset, seed=0, batch_size=2)]
      [2, 2]
    """
    # Batched after the unreadable images have dropped out: programs are compiled for one batch size.
    for number, examples in enumerate(itertools.batched(_first_epoch(dataset, seed, batch_size), batch_size)):
        if len(examples) == batch_size or number == 0:
            yield stack(examples)


def _first_epoch(dataset: ImageDataset, seed: int, batch_size: int) -> Iterator[Example]:
    for step in range(len(dataset) // batch_size):
        for example in read_many(dataset, batch_indices(seed, step, batch_size, len(dataset)).tolist()):
            if not isinstance(example, UnreadableImage):
                yield example


def evaluation_batches(dataset: ImageDataset, batch_size: int, start: int = 0) -> Iterator[Batch]:
    """Yield the readable examples of a dataset in order; zeros that are not valid fill up the last batch.

    Args:
      dataset: The examples; unreadable ones are logged and take no place.
      batch_size: Examples per batch.
      start: Index of the first example.

    Yields:
      A batch, with ``valid``, bool ``[batch]``, True for examples of the dataset, and with ``index``, int32
      ``[batch]``, the number of each example in the dataset.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> dataset = ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8)
      >>> [batch["valid"].tolist() for batch in evaluation_batches(dataset, batch_size=3)]
      [[True, True, True], [True, True, False]]
    """
    numbered = ({**example, "index": np.int32(index)} for index, example in readable_examples(dataset, start))
    for group in itertools.batched(numbered, batch_size):
        blank = {name: np.zeros_like(value) for name, value in group[0].items()}
        batch = stack([*group, *[blank] * (batch_size - len(group))])
        yield batch | {"valid": np.arange(batch_size) < len(group)}
