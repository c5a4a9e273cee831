"""What devices exchange in a training step, read from the compiled program."""

import jax
import numpy as np
import pytest

from benchmarks.compiled import promised
from benchmarks.programs import Program
from helpers.dispatches import dispatch

BATCH, SIDE = 16, 16


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
    program, state, arguments = dispatch(config, np.zeros((BATCH, SIDE, SIDE, 3), np.uint8), steps=1)
    arrays = Program(program.lower(*arguments).compile().as_text()).exchanged()
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = 4 * config.quantizer.num_codes * (config.model.latent_dim + 1)
    assert promised(state) == gradients + statistics
    expected = promised(state) + ((gradient_accumulation or 1) - 1) * gradients
    assert expected <= sum(arrays) <= expected + 64
    assert max(arrays) <= max(4 * config.quantizer.num_codes * config.model.latent_dim, gradients)
