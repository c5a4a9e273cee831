"""What devices exchange in a training step, read from the compiled program."""

import jax
import numpy as np
import pytest

from benchmarks.compiled import promised
from benchmarks.programs import Program
from vqjax.data import make_feed
from vqjax.data.arrays import ArrayDataset
from vqjax.tasks.state import TrainState
from vqjax.training.build import build_task, example_batch
from vqjax.training.config import validate
from vqjax.training.devices import make_mesh, state_sharding
from vqjax.training.dispatch import empty_log_sums, make_dispatch, make_step

BATCH, SIDE = 16, 16


def compiled_step(config) -> tuple[Program, TrainState]:
    mesh = make_mesh(None, {"codes": 1})
    dataset = ArrayDataset("black", np.zeros((BATCH, SIDE, SIDE, 3), np.uint8), SIDE)
    task = build_task(validate(config), dataset)
    feed = make_feed(dataset, seed=0, batch_size=BATCH, steps_per_dispatch=1, resident_limit=2**20, mesh=mesh)
    state = task.init(jax.random.key(0), example_batch(dataset))
    step = make_step(task, seed=0)
    state = state.replace(log_sums=empty_log_sums(step, state, feed.batch_spec))
    sharding = state_sharding(state, mesh, task)
    dispatch = make_dispatch(step, feed.select, steps_per_dispatch=1, sharding=sharding)
    lowered = dispatch.lower(jax.device_put(state, sharding), {}, feed.stage(0, 1), np.int32(1))
    return Program(lowered.compile().as_text()), state


@pytest.mark.full
@pytest.mark.parametrize("gradient_accumulation", [pytest.param(None, marks=pytest.mark.full), 2])
def test_devices_exchange_gradients_once_and_a_row_for_each_code(config, gradient_accumulation):
    """And a few numbers, such as the loss; nothing that has a row for each latent.

    With accumulation CPUs exchange the gradients of each part. XLA's compiler for GPUs waits for the last one
    (tests/benchmarks/test_h100.py).
    """
    config.batch_size, config.gradient_accumulation = BATCH, gradient_accumulation
    config.data.flip, config.data.crop_padding = False, None
    config.quantizer.num_codes, config.quantizer.codebook.replace = 256, None
    program, state = compiled_step(config)
    arrays = program.exchanged()
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = 4 * config.quantizer.num_codes * (config.model.latent_dim + 1)
    assert promised(state) == gradients + statistics
    expected = promised(state) + ((gradient_accumulation or 1) - 1) * gradients
    assert promised(state) <= sum(arrays) <= expected + 64
    assert max(arrays) <= max(4 * config.quantizer.num_codes * config.model.latent_dim, gradients)
