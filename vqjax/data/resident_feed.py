"""Training batches picked on the device from a dataset that lies there as a whole."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from vqjax.data.mesh_batches import check_batch_size, step_batches_sharding
from vqjax.data.order import batch_indices


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
