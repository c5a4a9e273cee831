"""What else can move encoder and codebook in a step: the decoder's loss itself, and alternating optimization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax.errors import UserError
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.registry import build_quantizer
from vqjax.tasks.alternating import CodebookOptimizer
from vqjax.tasks.state import create_state
from vqjax.tasks.vqvae import StepOptions, train_step
from vqjax.training.loop import train
from vqjax.training.validation import validate

RATE = 0.1


def make(encoder_gradient="estimator", codebook=None, **quantizer):
    model = VQVAE(
        SonnetEncoder(width=8, num_residual_blocks=1, latent_dim=4),
        build_quantizer({"name": "vector", "num_codes": 16, "commitment_weight": 0.0} | quantizer),
        SonnetDecoder(width=8, num_residual_blocks=1),
    )
    optimizer = optax.sgd(RATE)
    state = create_state(model, optimizer, (8, 8, 3), 0, codebook and codebook.optimizer)
    options = StepOptions(seed=0, encoder_gradient=encoder_gradient)
    step = functools.partial(train_step, model=model, optimizer=optimizer, options=options, codebook_optimizer=codebook)
    return model, state, jax.jit(step)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def gradient_of(state, after):
    """What plain SGD was given."""
    return jax.tree.map(lambda a, b: (a - b) / RATE, state.params, after.params)


def test_the_exact_gradient_is_that_of_the_autoencoder_without_quantization(images):
    model, state, step = make("exact")
    after, metrics = step(state, {"image": images})
    pixels = jnp.asarray(images, jnp.float32) / 127.5 - 1

    def unquantized(params):
        z = model.apply(state.variables | {"params": params}, pixels, method="latents")
        reconstruction = model.apply({"params": params}, z, method="decode_vectors")
        return jnp.mean(jnp.square(reconstruction - pixels))

    expected = jax.grad(unquantized)(state.params)
    measured = gradient_of(state, after)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-5), measured["encoder"], expected["encoder"]
    )
    quantized = model.apply(state.variables, pixels).reconstruction
    np.testing.assert_allclose(metrics["reconstruction_mse"], jnp.mean(jnp.square(quantized - pixels)), rtol=1e-4)


@pytest.mark.parametrize("encoder_gradient", ["hessian", "exact"])
def test_the_decoder_learns_from_the_codes_whatever_the_encoder_learns_from(images, encoder_gradient):
    _, state, step = make(estimator="straight_through")
    _, _, other_step = make(encoder_gradient, estimator="straight_through")
    expected = gradient_of(state, step(state, {"image": images})[0])
    measured = gradient_of(state, other_step(state, {"image": images})[0])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-5), measured["decoder"], expected["decoder"]
    )
    same = jax.tree.map(lambda x, y: bool(jnp.allclose(x, y, rtol=1e-3)), measured["encoder"], expected["encoder"])
    assert not any(jax.tree.leaves(same))


def test_alternating_steps_bring_the_codes_closer_before_the_task_step(images):
    codebook = CodebookOptimizer(optax.sgd(5.0, momentum=0.9), num_steps=5)
    learned = {"codebook_update": "gradient", "codebook_weight": 0.0}
    _, state, step = make(codebook=codebook, **learned)
    _, plain_state, plain_step = make(**learned)
    after, metrics = step(state, {"image": images})
    plain_after, plain_metrics = plain_step(plain_state, {"image": images})
    assert float(metrics["quantization_error"]) < 0.9 * float(plain_metrics["quantization_error"])
    assert bool(jnp.any(after.params["quantizer"]["codes"] != state.params["quantizer"]["codes"]))
    # With codebook_weight=0 the task alone does not move the codes.
    before = plain_state.params["quantizer"]["codes"]
    np.testing.assert_array_equal(plain_after.params["quantizer"]["codes"], before)


def test_a_run_with_every_remedy_resumes_and_ends(config, tmp_path):
    config.quantizer.codebook_update, config.quantizer.codebook_weight = "gradient", 0.0
    config.quantizer.replace_dead_codes, config.quantizer.replace_unused_after = False, 3
    config.quantizer.codebook_transform, config.quantizer.diversity_weight = "learned_affine", 0.1
    config.quantizer.heads, config.quantizer.separate_codebooks, config.quantizer.code_dim = 2, True, 3
    config.quantizer.synchronization = 0.2
    config.alternating.num_steps, config.loss.encoder_gradient = 1, "hessian"
    whole = train(config, tmp_path / "whole", devices=jax.devices()[:1])
    config.num_steps = 5
    train(config, tmp_path / "cut", devices=jax.devices()[:1])
    config.num_steps = 12
    assert train(config, tmp_path / "cut", devices=jax.devices()[:1]).metrics == whole.metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alternating.num_steps": 2}, "config.alternating.num_steps=2 is not allowed: the codes would move twice"),
        ({"loss.encoder_gradient": "exakt"}, "did you mean 'exact'"),
        ({"quantizer.codebook_transform": "lineal"}, "did you mean 'linear'"),
        ({"quantizer.diversity_weight": -1.0}, "config.quantizer.diversity_weight=-1.0 is not allowed"),
    ],
)
def test_options_that_cannot_work_are_refused(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        validate(config)
