"""How the batches of several training steps are divided over the devices of a mesh."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqjax.errors import UserError


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
