"""What devices exchange in a training step, read from the compiled program."""

import functools
import math
import re

import jax
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from vqjax.data import make_feed
from vqjax.data.arrays import ArrayDataset
from vqjax.models.registry import build_model
from vqjax.tasks.state import create_state
from vqjax.tasks.vqvae import StepOptions, train_step
from vqjax.training.devices import make_mesh, state_sharding
from vqjax.training.dispatch import empty_window, make_dispatch

BATCH, SIDE = 16, 16
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "u8": 1, "pred": 1}
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def exchanged(program: str) -> list[int]:
    """The bytes of each array that crosses devices."""
    shapes = [shape for match in COLLECTIVE.finditer(program) for shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1])]
    return [BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in shapes]


def compiled_step(config, gradient_accumulation: int) -> tuple[str, PyTree]:
    model, optimizer, mesh = build_model(config.model, config.quantizer), optax.adam(1e-3), make_mesh(None)
    dataset = ArrayDataset("black", np.zeros((BATCH, SIDE, SIDE, 3), np.uint8), SIDE)
    feed = make_feed(dataset, seed=0, batch_size=BATCH, steps_per_dispatch=1, resident_limit=2**20, mesh=mesh)
    model_of_step = model.clone(microbatches=gradient_accumulation)
    step = functools.partial(train_step, model=model_of_step, optimizer=optimizer, options=StepOptions(seed=0))
    state = create_state(model, optimizer, (SIDE, SIDE, 3), seed=0)
    state = state.replace(window=empty_window(state, feed, step, skip_nonfinite=False))
    sharding = state_sharding(state, mesh, model.quantizer.num_codes)
    dispatch = make_dispatch(step, feed.select, 1, sharding)
    lowered = dispatch.lower(jax.device_put(state, sharding), feed.stage(0, 1), np.int32(1))
    return lowered.compile().as_text(), state.params


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_devices_exchange_gradients_once_and_a_row_for_each_code(config, gradient_accumulation):
    """And a few numbers, such as the loss; nothing that has a row for each token."""
    config.quantizer.num_codes, config.quantizer.replace_dead_codes = 256, False
    program, params = compiled_step(config, gradient_accumulation)
    arrays = exchanged(program)
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    statistics = 4 * config.quantizer.num_codes * (config.model.code_dim + 1)
    assert gradients + statistics <= sum(arrays) <= gradients + statistics + 64
    assert max(arrays) <= max(4 * config.quantizer.num_codes * config.model.code_dim, gradients)
