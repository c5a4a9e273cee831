"""What devices exchange in a training step, read from the compiled program."""

import math
import re

import jax
import numpy as np
import pytest
from jaxtyping import PyTree

from vqjax.data import make_feed
from vqjax.data.arrays import ArrayDataset
from vqjax.training.build import build_task, example_batch
from vqjax.training.config import validate
from vqjax.training.devices import make_mesh, state_sharding
from vqjax.training.dispatch import empty_log_sums, make_dispatch, make_step

BATCH, SIDE = 16, 16
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "u8": 1, "pred": 1}
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def exchanged(program: str) -> list[int]:
    """The bytes of each array that crosses devices."""
    shapes = [shape for match in COLLECTIVE.finditer(program) for shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1])]
    return [BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in shapes]


def compiled_step(config) -> tuple[str, PyTree]:
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
    return lowered.compile().as_text(), state.params


@pytest.mark.full
@pytest.mark.parametrize("gradient_accumulation", [pytest.param(None, marks=pytest.mark.full), 2])
def test_devices_exchange_gradients_once_and_a_row_for_each_code(config, gradient_accumulation):
    """And a few numbers, such as the loss; nothing that has a row for each latent."""
    config.batch_size, config.gradient_accumulation = BATCH, gradient_accumulation
    config.data.flip, config.data.crop_padding = False, None
    config.quantizer.num_codes, config.quantizer.codebook.replace = 256, None
    program, params = compiled_step(config)
    arrays = exchanged(program)
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    statistics = 4 * config.quantizer.num_codes * (config.model.latent_dim + 1)
    assert gradients + statistics <= sum(arrays) <= gradients + statistics + 64
    assert max(arrays) <= max(4 * config.quantizer.num_codes * config.model.latent_dim, gradients)
