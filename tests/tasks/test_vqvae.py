"""One training step, by its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import VectorQuantizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.tasks.state import create_state
from vqjax.tasks.vqvae import StepOptions, train_step

# Metrics of the first step of the model below. They change when initialization, model, quantizer, loss or
# augmentation change. If that was meant, take the new numbers from the failure message, and say so in the commit.
GOLDEN = {
    "angle": 1.24236,
    "codebook_loss": 0.112007,
    "commitment_loss": 0.112007,
    "dead_codes": 0.0,
    "gradient_norm": 0.376101,
    "loss": 0.767533,
    "norm_ratio": 7.28349,
    "perplexity": 6.34868,
    "psnr": 10.3413,
    "quantization_error": 0.112007,
    "reconstruction_mse": 0.369766,
    "usage": 0.5,
}


@pytest.fixture(scope="module")
def step():
    model = VQVAE(
        SonnetEncoder(width=8, num_residual_blocks=1, latent_dim=4),
        VectorQuantizer(num_codes=16),
        SonnetDecoder(width=8, num_residual_blocks=1),
    )
    optimizer = optax.adam(1e-2)
    options = StepOptions(seed=0, flip=True, crop_padding=2, reconstruction_scale=2.0)
    state = create_state(model, optimizer, (16, 16, 3), seed=0)
    return state, jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, options=options))


@pytest.fixture(scope="module")
def batch():
    colors = np.random.default_rng(0).integers(0, 256, (8, 1, 2, 3), dtype=np.uint8)
    return {"image": colors.repeat(8, axis=2).repeat(16, axis=1)}


def test_the_first_step_has_the_recorded_metrics(step, batch):
    state, train = step
    _, metrics = train(state, batch)
    measured = {name: float(value) for name, value in metrics.items()}
    assert measured == pytest.approx(GOLDEN, rel=1e-4), f"measured: {measured}"


def test_the_loss_is_the_scaled_reconstruction_error_plus_commitment(step, batch):
    state, train = step
    _, metrics = train(state, batch)
    expected = 2.0 * metrics["reconstruction_mse"] + 0.25 * metrics["commitment_loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_a_step_moves_parameters_and_codebook_and_leaves_the_window(step, batch):
    state, train = step
    after, _ = train(state, batch)
    assert int(after.step) == 1
    assert after.window == state.window
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.variables, after.variables)
    assert all(jax.tree.leaves(moved["params"]))
    assert moved["codebook"]["quantizer"] == {"codes": True, "counts": True, "sums": True, "usage": True}


def test_randomness_depends_on_the_step_alone(step, batch):
    state, train = step
    first, second = train(state, batch)[1], train(state, batch)[1]
    later = train(state.replace(step=state.step + 1), batch)[1]
    assert float(first["loss"]) == float(second["loss"])
    assert float(first["loss"]) != float(later["loss"])


def test_training_lowers_the_loss(step, batch):
    state, train = step
    losses = []
    for _ in range(100):
        state, metrics = train(state, batch)
        losses.append(float(metrics["reconstruction_mse"]))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
