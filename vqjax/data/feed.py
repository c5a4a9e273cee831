"""How training batches reach the devices: several steps are staged at once, and one step is selected inside jit."""

import math
from typing import Protocol, runtime_checkable

from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from vqjax.data.dataset import ImageDataset, materialize
from vqjax.data.mesh_batches import check_batch_size
from vqjax.data.reading import image_shape
from vqjax.data.resident_feed import ResidentFeed
from vqjax.data.streamed_feed import StreamedFeed


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
