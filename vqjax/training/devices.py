"""Device mesh of a run, and the placement of its state."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from vqjax.errors import UserError
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task


def make_mesh(devices: list[jax.Device] | None, axes: Mapping[str, int], fields: Iterable[str] = ()) -> Mesh:
    """Arrange devices along the axis ``data`` and the axes of a task.

    Args:
      devices: Devices of the run; all by default.
      axes: Sizes of the axes besides ``data``, by name.
      fields: Dotted names of the config fields that set them, for the message.

    Returns:
      The mesh; ``data`` has all devices that the other axes leave.

    Raises:
      UserError: The other axes do not divide the number of devices.

    Example:
      >>> make_mesh(jax.devices()[:1], {"codes": 1}).shape
      OrderedDict({'data': 1, 'codes': 1})
    """
    number, taken = len(devices or jax.devices()), math.prod(axes.values())
    if number % taken:
        names = ", ".join(f"config.{field}" for field in fields)
        raise UserError(f"{names} must be a divisor of {number}, the number of devices, got {taken}.")
    shape = (number // taken, *axes.values())
    return jax.make_mesh(shape, ("data", *axes), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


@contextlib.contextmanager
def without_mesh() -> Iterator[None]:
    """Ignore the mesh that the caller has set, such as one with explicit axes, in favor of that of a run.

    Example:
      >>> with jax.set_mesh(jax.make_mesh((1,), ("mine",))), without_mesh():
      ...     jax.sharding.get_abstract_mesh().axis_names
      ()
    """
    with jax.set_mesh(Mesh(np.empty((), object), ())):
        yield


def platform_of(mesh: Mesh) -> str:
    """Return the platform of the devices of a mesh, such as ``"cpu"`` or ``"gpu"``."""
    return mesh.devices.flat[0].platform


def state_sharding(state: TrainState, mesh: Mesh, task: Task) -> TrainState:
    """Return where each array of a state lives.

    Args:
      state: State of arrays or their shapes.
      mesh: Mesh of :func:`make_mesh`.
      task: Task whose ``partition`` places the arrays.

    Returns:
      A sharding in the place of each array.
    """

    def of_array(path: tuple[Any, ...], array: Any) -> NamedSharding:
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))) for key in path)
        return NamedSharding(mesh, task.partition(names, array))

    return jax.tree_util.tree_map_with_path(of_array, state)
