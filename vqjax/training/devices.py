"""How the devices share a run: the batch along one axis of their mesh, the codebook along the other."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vqjax.errors import UserError
from vqjax.tasks.state import TrainState


def make_mesh(devices: list[jax.Device] | None, codebook_shards: int = 1) -> Mesh:
    """Arranges devices in the axes ``data`` and ``codes``.

    Args:
      devices: All by default.
      codebook_shards: Devices that divide a codebook among them.

    Returns:
      A mesh whose axis ``codes`` has that size; all other devices are along ``data``.

    Raises:
      UserError: The number of devices is not a multiple of it.

    Example:
      >>> make_mesh(jax.devices()[:1]).shape
      OrderedDict({'data': 1, 'codes': 1})
    """
    number = len(devices or jax.devices())
    if number % codebook_shards:
        raise UserError(
            f"config.quantizer.codebook_shards={codebook_shards} is not allowed: use a divisor of {number}, the number "
            "of devices."
        )
    shape = (number // codebook_shards, codebook_shards)
    return jax.make_mesh(shape, ("data", "codes"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def state_sharding(state: TrainState, mesh: Mesh, num_codes: int) -> TrainState:
    """Where each array of the state lives.

    Args:
      state: Of arrays or their shapes.
      mesh: See :func:`make_mesh`.
      num_codes: Of the quantizer; what has one row per code is divided along ``codes``.

    Returns:
      A sharding for each array: whole on every device, but for the codebook, its averages, and the optimizer's
      moments of codes that are learned by gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = {"codebook": {"quantizer": {"codes": jnp.zeros((4, 2))}}}
      >>> state = TrainState(step=jnp.zeros(()), params={}, collections=codes, opt_state={}, window={})
      >>> state_sharding(state, make_mesh(jax.devices()[:1]), 4).collections["codebook"]["quantizer"]["codes"].spec[0]
      'codes'
    """

    def of_array(path: tuple, array: Any) -> NamedSharding:
        names = [getattr(key, "key", None) for key in path]
        of_codes = "quantizer" in names and ("codebook" in names or names[-1] == "codes")
        row_per_code = of_codes and array.shape[:1] == (num_codes,)
        return NamedSharding(mesh, PartitionSpec("codes") if row_per_code else PartitionSpec())

    return jax.tree_util.tree_map_with_path(of_array, state)
