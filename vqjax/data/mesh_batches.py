"""How the batches of several training steps are divided over the devices of a mesh."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqjax.errors import UserError


def check_batch_size(batch_size: int, num_images: int, mesh: Mesh) -> None:
    """Refuses a batch that the devices cannot share equally, or that the data cannot fill.

    Args:
        batch_size: images per step, over all devices.
        num_images: images in the training data.
        mesh: the devices, along the axis "data".

    Raises:
        UserError: the batch size does not fit.

    Example:
        >>> import jax
        >>> check_batch_size(8, 100, jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    """
    devices = mesh.shape["data"]
    if batch_size < 1 or batch_size % devices:
        nearest = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {devices} devices; "
            f"use a positive multiple of {devices}, such as {nearest}"
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
