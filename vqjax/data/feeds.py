"""Feeds: the training batches in training order, resident on the devices or read ahead of training by threads."""

import itertools
import sys
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from vqjax.data.batches import batch_indices, check_batch_size, stack, step_batches_sharding
from vqjax.data.dataset import Batch, Example, ImageDataset, UnreadableImage, is_random, pixels_name
from vqjax.data.reading import (
    READING_THREADS,
    UnreadableReport,
    bytes_per_example,
    example_spec,
    materialize,
    read_many,
)
from vqjax.errors import UserError


@runtime_checkable
class Feed(Protocol):
    """The training batches in training order.

    Attributes:
      num_images: Number of different images.
      batch_spec: Shape and dtype of each entry of a step's batch, over all devices.
      staged_spec: Shape, dtype and sharding of what :meth:`stage` returns.
    """

    num_images: int
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    staged_spec: PyTree[jax.ShapeDtypeStruct]

    def stage(self, step: int, count: int) -> PyTree[Array]:
        """Put on the devices what ``select`` needs for steps ``step`` to ``step + count - 1``.

        Its shapes do not depend on ``count``, so that what is jitted over it compiles once. It is reused by later
        calls: do not donate it. Calls follow one another without gaps; only the first may start anywhere.
        """
        ...

    @staticmethod
    def select(staged: PyTree[Array], i: Int[Array, ""] | int) -> Batch:
        """Return the batch of the ``i``-th staged step; pure, to be called inside jit."""
        ...

    def close(self) -> None:
        """Stop what runs in the background."""
        ...


class ResidentFeed:
    """A :class:`Feed` that copies the whole dataset to every device once, and afterwards only sends indices.

    Args:
      dataset: The training examples.
      seed: Seed of the order.
      batch_size: Images per step, over all devices.
      steps_per_dispatch: Maximum number of steps that are staged at once.
      mesh: Devices, along the axis ``data``.

    Raises:
      UserError: The batch does not fit the devices or the data, or no image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> dataset = ArrayDataset("black", np.zeros((10, 8, 8, 3), np.uint8), image_size=8)
      >>> feed = ResidentFeed(dataset, seed=0, batch_size=2, steps_per_dispatch=3, mesh=mesh)
      >>> feed.select(feed.stage(step=0, count=3), 1)["image"].shape
      (2, 8, 8, 3)
    """

    def __init__(self, dataset: ImageDataset, *, seed: int, batch_size: int, steps_per_dispatch: int, mesh: Mesh):
        # Before minutes are spent on decoding, and again without the images that cannot be read.
        check_batch_size(batch_size, len(dataset), mesh)
        examples = materialize(dataset)
        self.num_images = len(next(iter(examples.values())))
        check_batch_size(batch_size, self.num_images, mesh)
        self.batch_spec = _batch_spec(dataset, batch_size)
        self._seed = seed
        self._shape = (steps_per_dispatch, batch_size)
        self._sharding = step_batches_sharding(mesh)
        whole = NamedSharding(mesh, PartitionSpec())
        # Per-process callbacks, because device_put of the whole would compare it across processes first.
        self._examples = {
            name: jax.make_array_from_callback(values.shape, whole, values.__getitem__)
            for name, values in examples.items()
        }
        self.staged_spec = self.describe(self.batch_spec, self.num_images, steps_per_dispatch, mesh)

    @staticmethod
    def describe(
        batch_spec: Mapping[str, jax.ShapeDtypeStruct], num_images: int, steps_per_dispatch: int, mesh: Mesh
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the ``staged_spec`` of a feed with this number of images; see :class:`Feed`."""
        whole, by_step = NamedSharding(mesh, PartitionSpec()), step_batches_sharding(mesh)
        examples = {
            name: jax.ShapeDtypeStruct((num_images, *spec.shape[1:]), spec.dtype, sharding=whole)
            for name, spec in batch_spec.items()
        }
        batch_size = next(iter(batch_spec.values())).shape[0]
        indices = jax.ShapeDtypeStruct((steps_per_dispatch, batch_size), np.int32, sharding=by_step)
        return {"examples": examples, "indices": indices}

    def stage(self, step: int, count: int) -> PyTree[Array]:
        """Put the indices of steps ``step`` to ``step + count - 1`` on the devices, in addition to the examples."""
        indices = np.zeros(self._shape, np.int32)
        for i in range(count):
            indices[i] = batch_indices(self._seed, step + i, self._shape[1], self.num_images)
        staged = jax.make_array_from_callback(self._shape, self._sharding, indices.__getitem__)
        return {"examples": self._examples, "indices": staged}

    @staticmethod
    def select(staged: PyTree[Array], i: Int[Array, ""] | int) -> Batch:
        """Return the batch of the ``i``-th staged step; pure, to be called inside jit."""
        return {name: values[staged["indices"][i]] for name, values in staged["examples"].items()}

    def close(self) -> None:
        """Do nothing: the examples leave the devices with the last reference."""


class StreamedFeed:
    """A :class:`Feed` with the same batches as :class:`ResidentFeed`, read while training runs.

    An unreadable image is logged once and replaced by the next readable one; where none is left, ``stage`` raises
    UserError. With several processes, each reads only the rows of the batch that its own devices hold.

    Args:
      dataset: The training examples.
      seed: Seed of the order.
      batch_size: Images per step, over all devices.
      steps_per_dispatch: Maximum number of steps that are staged at once.
      mesh: Devices, along the axis ``data``.

    Raises:
      UserError: The batch does not fit the devices or the data, or no image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> dataset = ArrayDataset("black", np.zeros((10, 8, 8, 3), np.uint8), image_size=8)
      >>> feed = StreamedFeed(dataset, seed=0, batch_size=2, steps_per_dispatch=3, mesh=mesh)
      >>> feed.select(feed.stage(step=0, count=3), 1)["image"].shape
      (2, 8, 8, 3)
      >>> feed.close()
    """

    def __init__(self, dataset: ImageDataset, *, seed: int, batch_size: int, steps_per_dispatch: int, mesh: Mesh):
        check_batch_size(batch_size, len(dataset), mesh)
        self.num_images = len(dataset)
        self.batch_spec = _batch_spec(dataset, batch_size)
        self._dataset = dataset
        self._seed = seed
        self._steps, self._batch_size = steps_per_dispatch, batch_size
        self._sharding = step_batches_sharding(mesh)
        self.staged_spec = self.describe(self.batch_spec, steps_per_dispatch, mesh)
        local = self._sharding.addressable_devices_indices_map((steps_per_dispatch, batch_size)).values()
        self._local_rows = sorted({row for index in local for row in range(batch_size)[index[1]]})
        self._report = UnreadableReport(dataset.name, pixels_name(self.batch_spec))
        self._next_step: int | None = None
        self._batches: grain.DatasetIterator | None = None

    @staticmethod
    def describe(
        batch_spec: Mapping[str, jax.ShapeDtypeStruct], steps_per_dispatch: int, mesh: Mesh
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the ``staged_spec`` of a feed; see :class:`Feed`."""
        by_step = step_batches_sharding(mesh)
        return {
            name: jax.ShapeDtypeStruct((steps_per_dispatch, *spec.shape), spec.dtype, sharding=by_step)
            for name, spec in batch_spec.items()
        }

    def stage(self, step: int, count: int) -> PyTree[Array]:
        """Put the batches of steps ``step`` to ``step + count - 1`` on the devices, and read on behind them."""
        if step != self._next_step:
            self._read_from(step)
        batches = list(itertools.islice(self._batches, count))
        self._next_step = step + count
        return {name: self._staged(name, batches) for name in self.batch_spec}

    def _staged(self, name: str, batches: list[Example]) -> Array:
        """Stack one entry of the steps' batches; zeros fill up the steps that are missing."""
        spec = self.batch_spec[name]
        local = np.zeros((self._steps, len(self._local_rows), *spec.shape[1:]), spec.dtype)
        for i, batch in enumerate(batches):
            local[i] = batch[name]
        return jax.make_array_from_process_local_data(self._sharding, local, (self._steps, *spec.shape))

    @staticmethod
    def select(staged: PyTree[Array], i: Int[Array, ""] | int) -> Batch:
        """Return the batch of the ``i``-th staged step; pure, to be called inside jit."""
        return {name: batches[i] for name, batches in staged.items()}

    def close(self) -> None:
        """Stop reading ahead, and log the number of unreadable images."""
        if self._batches is not None:
            self._batches.close()
            self._batches = self._next_step = None
            self._report.summarize(self.num_images)

    def _read_from(self, step: int) -> None:
        if self._batches is not None:
            self._batches.close()
        ahead = grain.ReadOptions(READING_THREADS, prefetch_buffer_size=self._steps + READING_THREADS)
        steps = grain.MapDataset.range(step, sys.maxsize)
        self._batches = iter(steps.map(self._local_batch).to_iter_dataset(ahead))

    def _local_batch(self, step: int) -> Example:
        """Read the rows of a step's batch that the devices of this process hold."""
        indices = batch_indices(self._seed, step, self._batch_size, self.num_images)[self._local_rows]
        generators = None
        if is_random(self._dataset):
            # By the row of the whole batch, so that crops do not depend on the number of processes.
            generators = [np.random.default_rng((self._seed, step, row)) for row in self._local_rows]
        examples = read_many(self._dataset, indices.tolist(), generators)
        for row, example in enumerate(examples):
            if isinstance(example, UnreadableImage):
                generator = None if generators is None else [generators[row]]
                examples[row] = self._next_readable(int(indices[row]), example, generator)
        return stack(examples)

    def _next_readable(
        self, index: int, example: Example | UnreadableImage, generator: list[np.random.Generator] | None
    ) -> Example:
        for _ in range(self.num_images):
            self._report.add(example)
            index = (index + 1) % self.num_images
            (example,) = read_many(self._dataset, [index], generator)
            if not isinstance(example, UnreadableImage):
                return example
        raise UserError(
            f"{self._dataset.name} must have readable images, got none any more, although one could be read before "
            f"({example}); see whether they are still there."
        )


def _batch_spec(dataset: ImageDataset, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    spec = example_spec(dataset)
    return {name: jax.ShapeDtypeStruct((batch_size, *entry.shape), entry.dtype) for name, entry in spec.items()}


def make_feed(
    dataset: ImageDataset,
    *,
    seed: int,
    batch_size: int,
    steps_per_dispatch: int,
    resident_limit: int,
    mesh: Mesh,
) -> Feed:
    """Choose between keeping a dataset on the devices and streaming it; the batches are the same.

    What is cropped at random is streamed, as the devices would keep a single crop of each image.

    Args:
      dataset: The training examples.
      seed: Seed of the order.
      batch_size: Images per step, over all devices.
      steps_per_dispatch: Maximum number of steps that are staged at once.
      resident_limit: Maximum number of bytes of the dataset that each device may hold.
      mesh: Devices, along the axis ``data``.

    Returns:
      The feed; close it after training.

    Raises:
      UserError: The batch does not fit the devices or the data, or no image can be read.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> dataset = ArrayDataset("black", np.zeros((10, 8, 8, 3), np.uint8), image_size=8)
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> options = {"seed": 0, "batch_size": 2, "steps_per_dispatch": 3, "mesh": mesh}
      >>> type(make_feed(dataset, resident_limit=2**20, **options)).__name__
      'ResidentFeed'
    """
    is_large = len(dataset) * bytes_per_example(dataset) > resident_limit
    feed = StreamedFeed if is_large or is_random(dataset) else ResidentFeed
    return feed(dataset, seed=seed, batch_size=batch_size, steps_per_dispatch=steps_per_dispatch, mesh=mesh)
