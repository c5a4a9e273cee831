"""Device mesh of a run, and the placement of its state."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vqjax.data.batches import PARAMETERS_AXIS
from vqjax.errors import UserError
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task

_FIELDS = {"codes": "config.quantizer.codebook_shards", PARAMETERS_AXIS: "config.parameter_shards"}
_TRAINED = ("params", "opt_state", "ema_params")
_SMALLEST_DIVIDED = 1024  # numbers; what is smaller costs more to gather than to keep


def make_mesh(devices: list[jax.Device] | None, axes: Mapping[str, int]) -> Mesh:
    """Arrange devices along the axis ``data`` and other axes.

    Args:
      devices: Devices of the run; all by default.
      axes: Sizes of the axes besides ``data``, by name.

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
        names = " times ".join(_FIELDS.get(name, f"axis {name}") for name, size in axes.items() if size > 1)
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
      task: Task whose ``partition`` places the arrays. What it replicates of parameters, their averages and the states
        of optimizers is divided over the axis ``parameters``, if the mesh has one.

    Returns:
      A sharding in the place of each array.
    """
    shards = mesh.shape.get(PARAMETERS_AXIS, 1)

    def of_array(path: tuple[Any, ...], array: Any) -> NamedSharding:
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))) for key in path)
        sharding = NamedSharding(mesh, task.partition(names, array))
        # An axis of one device, such as that of codes by default, divides nothing.
        if names[0] in _TRAINED and sharding.is_fully_replicated:
            sharding = NamedSharding(mesh, _divided(array.shape, shards))
        return sharding

    return jax.tree_util.tree_map_with_path(of_array, state)


def _divided(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """The longest axis over the devices that share parameters; the last one of several."""
    divisible = [axis for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or math.prod(shape) < _SMALLEST_DIVIDED or not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * longest, PARAMETERS_AXIS)


def gathered(sharding: PyTree[NamedSharding]) -> PyTree[NamedSharding]:
    """Return the shardings of arrays of which no device lacks a part of what the axis ``parameters`` divides.

    Args:
      sharding: Shardings, as of :func:`state_sharding`.

    Example:
      >>> mesh = make_mesh(jax.devices()[:1], {"parameters": 1})
      >>> gathered(NamedSharding(mesh, PartitionSpec("parameters"))).spec
      P(None,)
    """

    def whole(of_array: NamedSharding) -> NamedSharding:
        spec = (None if axis == PARAMETERS_AXIS else axis for axis in of_array.spec)
        return NamedSharding(of_array.mesh, PartitionSpec(*spec))

    return jax.tree.map(whole, sharding)
