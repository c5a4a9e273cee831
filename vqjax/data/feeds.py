"""Training batches decoded ahead of training by threads, for datasets that do not fit on a device."""

import itertools
import math
import sys
from typing import Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from vqjax.data.batches import batch_indices, check_batch_size, step_batches_sharding
from vqjax.data.dataset import ImageDataset, UnreadableImage
from vqjax.data.reading import READING_THREADS, UnreadableReport, image_shape, materialize, read_many


class ResidentFeed:
    """A `Feed` that copies all images to every device once, and afterwards only sends indices.

    Args:
        images: the training images.
        seed: decides the order.
        batch_size: images per step, over all devices.
        steps_per_dispatch: the most steps that are staged at once.
        mesh: the devices, one axis "data".

    Raises:
        UserError: the batch does not fit the devices or the data.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> images = np.zeros((10, 8, 8, 3), np.uint8)
        >>> feed = ResidentFeed(images, seed=0, batch_size=2, steps_per_dispatch=3, mesh=mesh)
        >>> feed.select(feed.stage(step=0, count=3), 1).shape
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "images height width channels"],
        *,
        seed: int,
        batch_size: int,
        steps_per_dispatch: int,
        mesh: Mesh,
    ):
        check_batch_size(batch_size, len(images), mesh)
        self.num_images = len(images)
        self.image_shape = images.shape[1:]
        self._seed = seed
        self._shape = (steps_per_dispatch, batch_size)
        self._sharding = step_batches_sharding(mesh)
        # Per-process callbacks, because device_put of the whole would compare it across processes first.
        self._images = jax.make_array_from_callback(
            images.shape, NamedSharding(mesh, PartitionSpec()), lambda index: images[index]
        )

    def stage(self, step: int, count: int) -> dict[str, Array]:
        """Puts the indices of steps `step` to `step + count - 1` on the devices, beside the images."""
        indices = np.zeros(self._shape, np.int32)
        for i in range(count):
            indices[i] = batch_indices(self._seed, step + i, self._shape[1], self.num_images)
        staged = jax.make_array_from_callback(self._shape, self._sharding, lambda index: indices[index])
        return {"images": self._images, "indices": staged}

    @staticmethod
    def select(staged: dict[str, Array], i: Int[Array, ""] | int) -> UInt8[Array, "batch height width channels"]:
        """The images of the `i`-th staged step; pure, to be called inside jit."""
        return staged["images"][staged["indices"][i]]

    def close(self) -> None:
        """Nothing runs in the background; the images leave the devices with the last reference."""


class StreamedFeed:
    """A `Feed` with the same images in the same order as `ResidentFeed`, read while training runs.

    An unreadable image is named once and replaced by the next readable one. With several processes, each reads
    only the rows of the batch that its own devices hold.

    Args:
        dataset: the training images.
        seed: decides the order.
        batch_size: images per step, over all devices.
        steps_per_dispatch: the most steps that are staged at once.
        mesh: the devices, one axis "data".

    Raises:
        UserError: the batch does not fit the devices or the data, or not one image can be read.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> dataset = ArrayDataset("black", np.zeros((10, 8, 8, 3), np.uint8), image_size=8)
        >>> feed = StreamedFeed(dataset, seed=0, batch_size=2, steps_per_dispatch=3, mesh=mesh)
        >>> feed.select(feed.stage(step=0, count=3), 1).shape
        (2, 8, 8, 3)
        >>> feed.close()
    """

    def __init__(self, dataset: ImageDataset, *, seed: int, batch_size: int, steps_per_dispatch: int, mesh: Mesh):
        check_batch_size(batch_size, len(dataset), mesh)
        self.num_images = len(dataset)
        self.image_shape = image_shape(dataset)
        self._dataset = dataset
        self._seed = seed
        self._shape = (steps_per_dispatch, batch_size, *self.image_shape)
        self._sharding = step_batches_sharding(mesh)
        local = self._sharding.addressable_devices_indices_map(self._shape).values()
        self._local_rows = sorted({row for index in local for row in range(batch_size)[index[1]]})
        self._report = UnreadableReport(dataset.name)
        self._next_step: int | None = None
        self._batches: grain.DatasetIterator | None = None

    def stage(self, step: int, count: int) -> dict[str, Array]:
        """Puts the images of steps `step` to `step + count - 1` on the devices, and reads on behind them."""
        if step != self._next_step:
            self._read_from(step)
        batches = np.empty((self._shape[0], len(self._local_rows), *self.image_shape), np.uint8)
        for i, batch in enumerate(itertools.islice(self._batches, count)):
            batches[i] = batch
        batches[count:] = 0
        self._next_step = step + count
        return {"batches": jax.make_array_from_process_local_data(self._sharding, batches, self._shape)}

    @staticmethod
    def select(staged: dict[str, Array], i: Int[Array, ""] | int) -> UInt8[Array, "batch height width channels"]:
        """The images of the `i`-th staged step; pure, to be called inside jit."""
        return staged["batches"][i]

    def close(self) -> None:
        """Stops reading ahead, and logs how many unreadable images were met."""
        if self._batches is not None:
            self._batches.close()
            self._batches = self._next_step = None
            self._report.summarize(self.num_images)

    def _read_from(self, step: int) -> None:
        if self._batches is not None:
            self._batches.close()
        ahead = grain.ReadOptions(READING_THREADS, prefetch_buffer_size=self._shape[0] + READING_THREADS)
        steps = grain.MapDataset.range(step, sys.maxsize)
        self._batches = iter(steps.map(self._local_batch).to_iter_dataset(ahead))

    def _local_batch(self, step: int) -> UInt8[np.ndarray, "local height width channels"]:
        indices = batch_indices(self._seed, step, self._shape[1], self.num_images)[self._local_rows]
        images = read_many(self._dataset, indices.tolist())
        for row, image in enumerate(images):
            if isinstance(image, UnreadableImage):
                images[row] = self._next_readable(int(indices[row]), image)
        return np.stack(images)

    def _next_readable(self, index: int, image: UnreadableImage) -> UInt8[np.ndarray, "height width channels"]:
        # Ends, because the constructor has found a readable image.
        while isinstance(image, UnreadableImage):
            self._report.add(image)
            index = (index + 1) % self.num_images
            (image,) = read_many(self._dataset, [index])
        return image


@runtime_checkable
class Feed(Protocol):
    """The training images in training order.

    Attributes:
        num_images: how many different images there are.
        image_shape: height, width and channels of each.
    """

    num_images: int
    image_shape: tuple[int, ...]

    def stage(self, step: int, count: int) -> dict[str, Array]:
        """What `select` needs for steps `step` to `step + count - 1`, on the devices.

        Its shapes do not depend on `count`, so that what is jitted over it compiles once. It is reused by later
        calls: do not donate it. Calls follow one another without gaps; only the first may start anywhere.
        """
        ...

    @staticmethod
    def select(staged: dict[str, Array], i: Int[Array, ""] | int) -> UInt8[Array, "batch height width channels"]:
        """The images of the `i`-th staged step; pure, to be called inside jit."""
        ...

    def close(self) -> None:
        """Stops whatever runs in the background."""
        ...


def make_feed(
    dataset: ImageDataset,
    *,
    seed: int,
    batch_size: int,
    steps_per_dispatch: int,
    resident_limit: int,
    mesh: Mesh,
) -> Feed:
    """Chooses between keeping the images on the devices and streaming them; the batches are the same.

    Args:
        dataset: the training images.
        seed: decides the order.
        batch_size: images per step, over all devices.
        steps_per_dispatch: the most steps that are staged at once.
        resident_limit: the most bytes of images that each device shall hold.
        mesh: the devices, one axis "data".

    Returns:
        the feed; close it after training.

    Raises:
        UserError: the batch does not fit the devices or the data, or not one image can be read.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from vqjax.data.arrays import ArrayDataset
        >>> dataset = ArrayDataset("black", np.zeros((10, 8, 8, 3), np.uint8), image_size=8)
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> options = {"seed": 0, "batch_size": 2, "steps_per_dispatch": 3, "mesh": mesh}
        >>> type(make_feed(dataset, resident_limit=2**20, **options)).__name__
        'ResidentFeed'
    """
    options = {"seed": seed, "batch_size": batch_size, "steps_per_dispatch": steps_per_dispatch, "mesh": mesh}
    # Checked here as well, before minutes are spent on decoding.
    check_batch_size(batch_size, len(dataset), mesh)
    if len(dataset) * math.prod(image_shape(dataset)) > resident_limit:
        return StreamedFeed(dataset, **options)
    return ResidentFeed(materialize(dataset), **options)
