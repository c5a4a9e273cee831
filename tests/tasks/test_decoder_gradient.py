"""Gradients of the encoder that come from the decoder's loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import VectorQuantizer
from vqjax.data import to_model_range
from vqjax.errors import UserError
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.tokenizer import NETWORK
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.vqvae import VQVAETask

RATE = 0.1
MODEL = VQVAE(
    SonnetEncoder(width=8, num_residual_blocks=1, latent_dim=4),
    VectorQuantizer(num_codes=16, commitment_weight=0.0, estimator="straight_through"),
    SonnetDecoder(width=8, num_residual_blocks=1),
)


def squared_error(reconstruction, images):
    return jnp.mean(jnp.square(reconstruction - images))


def take_step(task, batch):
    """The state before a step, the gradient that plain SGD was given, and the metrics."""
    state = task.init(jax.random.key(0), batch)
    after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
    gradient = jax.tree.map(lambda a, b: (a - b) / RATE, state.params[NETWORK], after.params[NETWORK])
    return state, gradient, metrics


def assert_close(measured, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-5), measured, expected)


@pytest.fixture(scope="module")
def batch():
    return {"image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)}


@pytest.mark.full
def test_the_exact_gradient_is_that_of_the_autoencoder_without_quantization(batch):
    task = DecoderGradientTask(MODEL, optax.sgd(RATE), squared_error, gradient="exact")
    state, gradient, metrics = take_step(task, batch)
    images = to_model_range(batch["image"])

    def unquantized(params):
        z = MODEL.apply(state.trained(NETWORK) | {"params": params}, images, method="latents")
        return squared_error(MODEL.apply({"params": params}, z, method="decode_latents"), images)

    assert_close(gradient["encoder"], jax.grad(unquantized)(state.params[NETWORK])["encoder"])
    quantized = MODEL.apply(state.trained(NETWORK), images, train=False).reconstruction
    np.testing.assert_allclose(metrics["reconstruction_mse"], squared_error(quantized, images), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", ["hessian", "exact"])
def test_the_decoder_learns_from_the_codes_whatever_the_encoder_learns_from(batch, name):
    _, expected, _ = take_step(VQVAETask(MODEL, optax.sgd(RATE), squared_error), batch)
    _, gradient, _ = take_step(DecoderGradientTask(MODEL, optax.sgd(RATE), squared_error, gradient=name), batch)
    assert_close(gradient["decoder"], expected["decoder"])
    same = jax.tree.map(lambda x, y: bool(jnp.allclose(x, y, rtol=1e-3)), gradient["encoder"], expected["encoder"])
    assert not any(jax.tree.leaves(same))


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, codes, *, train):
        return SonnetDecoder(width=8)(nn.BatchNorm(use_running_average=not train)(codes))


@pytest.mark.full
def test_a_decoder_with_state_is_refused(batch):
    task = DecoderGradientTask(MODEL.clone(decoder=Normalized()), optax.sgd(RATE), squared_error)
    with pytest.raises(UserError, match=r"decoder without state .* got state in the collections \['batch_stats'\]"):
        task.init(jax.random.key(0), batch)
