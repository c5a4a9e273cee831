"""Training batches decoded ahead of training by threads, for datasets that do not fit on a device."""

import itertools
import sys

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from vqjax.data.dataset import ImageDataset, UnreadableImage
from vqjax.data.mesh_batches import check_batch_size, step_batches_sharding
from vqjax.data.order import batch_indices
from vqjax.data.reading import READING_THREADS, UnreadableReport, image_shape, read_many


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
