"""The compiled program of training steps, as the training loop builds it, on eight devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vqjax.data import make_feed
from vqjax.data.arrays import ArrayDataset
from vqjax.tasks.state import TrainState
from vqjax.training.build import build_task, initial_state
from vqjax.training.config import validate
from vqjax.training.devices import make_mesh, state_sharding
from vqjax.training.dispatch import empty_log_sums, make_dispatch, make_step


class Dispatch(NamedTuple):
    """A program of several steps, the state before the first one, and the program's arguments."""

    program: Callable[..., Any]
    state: TrainState
    arguments: tuple[Any, ...]


def dispatch(config: ConfigDict, images: np.ndarray, steps: int, parameter_shards: int = 1) -> Dispatch:
    dataset = ArrayDataset("images", images, images.shape[1])
    task = build_task(validate(config), dataset)
    mesh = make_mesh(None, {**task.mesh_axes, "parameters": parameter_shards})
    options = {"seed": 0, "batch_size": config.batch_size}
    feed = make_feed(dataset, steps_per_dispatch=steps, resident_limit=2**20, mesh=mesh, **options)
    state, step = initial_state(task, dataset, **options), make_step(task, seed=0)
    state = state.replace(log_sums=empty_log_sums(step, state, feed.batch_spec))
    sharding = state_sharding(state, mesh, task)
    program = make_dispatch(step, feed.select, steps_per_dispatch=steps, sharding=sharding)
    return Dispatch(program, state, (jax.device_put(state, sharding), {}, feed.stage(0, steps), np.int32(steps)))
