"""In which order training visits the images: a pure function of the seed and the step."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int, Int32, UInt8

from vqjax.data.dataset import ImageDataset
from vqjax.data.reading import readable_images
from vqjax.errors import UserError


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Int32[np.ndarray, " batch"]:
    """The indices of the images of one training step.

    Every epoch is a fresh permutation of all images; the images that do not fill a last batch are dropped, other
    ones each epoch. Because nothing but the arguments matters, a resumed run needs no saved data position.

    Args:
        seed: the run's seed.
        step: the training step, from 0.
        batch_size: images per step.
        num_images: images in the dataset.

    Returns:
        int32 in [0, num_images), no index twice in one epoch.

    Raises:
        UserError: a batch is larger than the dataset.

    Example:
        >>> first, second = (batch_indices(0, step, batch_size=2, num_images=4) for step in (0, 1))
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3]
    """
    if batch_size > num_images:
        raise UserError(
            f"batch_size={batch_size} is larger than the {num_images} training images; use {num_images} or less"
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
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " heldout"]]:
    """Divides indices at random, the same way every time, into training and held-out ones.

    Args:
        num_images: how many images there are.
        eval_fraction: the share to hold out, in (0, 1); at least one image lands on either side.
        name: the collection, for the error message.

    Returns:
        the training and the held-out indices, each in rising order.

    Raises:
        UserError: the fraction is out of range, or a single image would have to be divided.

    Example:
        >>> train, heldout = hold_out(10, 0.2, name="holiday")
        >>> len(train), len(heldout), sorted([*train, *heldout]) == list(range(10))
        (8, 2, True)
    """
    if not 0 < eval_fraction < 1:
        raise UserError(
            f"config.data.eval_fraction={eval_fraction} must lie between 0 and 1; use 0.1 to hold out a tenth"
        )
    if num_images < 2:
        raise UserError(
            f"config.data.name={name!r} has {num_images} readable image, but training and evaluation need one each; "
            "add images"
        )
    num_heldout = min(max(1, round(num_images * eval_fraction)), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(key=0)).permutation(num_images)
    return np.sort(shuffled[num_heldout:]), np.sort(shuffled[:num_heldout])


def check_batch_size(batch_size: int, num_images: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Refuses a batch that the devices cannot share equally, or that the data cannot fill.

    Args:
        batch_size: images per step, over all devices.
        num_images: images in the training data.
        mesh: the devices, along the axis "data".
        microbatches: parts of a batch, each of which the devices share.

    Raises:
        UserError: the batch size does not fit.

    Example:
        >>> import jax
        >>> check_batch_size(8, 100, jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    """
    devices = mesh.shape["data"]
    multiple = devices * microbatches
    if batch_size < 1 or batch_size % multiple:
        nearest = max(1, round(batch_size / multiple)) * multiple
        in_parts = f" in {microbatches} parts" if microbatches > 1 else ""
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {devices} devices{in_parts}; "
            f"use a positive multiple of {multiple}, such as {nearest}"
        )
    if batch_size > num_images:
        raise UserError(
            f"batch_size={batch_size} is larger than the {num_images} training images; use a smaller batch or more data"
        )


def step_batches_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [steps, batch, ...]: every device holds its share of each step's batch.

    Args:
        mesh: has the axis "data".

    Example:
        >>> import jax
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> step_batches_sharding(mesh).spec[1]
        'data'
    """
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def evaluation_batches(
    dataset: ImageDataset, batch_size: int
) -> Iterator[tuple[UInt8[np.ndarray, "batch height width channels"], Bool[np.ndarray, " batch"]]]:
    """Yields the readable images of a dataset in order; what is missing in the last batch is black and not valid.

    Args:
        dataset: the images; unreadable ones are named, counted and take no place.
        batch_size: images per batch.

    Yields:
        images, uint8 in [0, 255], and which of them are images of the dataset.

    Example:
        >>> from vqjax.data.arrays import ArrayDataset
        >>> dataset = ArrayDataset("black", np.zeros((5, 8, 8, 3), np.uint8), image_size=8)
        >>> [valid.tolist() for _, valid in evaluation_batches(dataset, batch_size=3)]
        [[True, True, True], [True, True, False]]
    """
    for group in itertools.batched(readable_images(dataset), batch_size):
        images = np.zeros((batch_size, *group[0].shape), np.uint8)
        images[: len(group)] = group
        yield images, np.arange(batch_size) < len(group)
