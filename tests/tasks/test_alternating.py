"""Steps on the codebook before each step on the task."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import FSQ, GradientCodebook, VectorQuantizer, quantizers
from vqjax.errors import UserError
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.tokenizer import NETWORK
from vqjax.tasks.alternating import AlternatingTask
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training.loop import train


def model_of(quantizer):
    encoder = SonnetEncoder(width=8, num_residual_blocks=1, latent_dim=4)
    return VQVAE(encoder, quantizer, SonnetDecoder(width=8, num_residual_blocks=1))


def squared_error(reconstruction, images):
    return jnp.mean(jnp.square(reconstruction - images))


def learned(**arguments):
    """Codes that the loss of a step does not move."""
    return VectorQuantizer(num_codes=16, commitment_weight=0.0, codebook=GradientCodebook(weight=0.0), **arguments)


@pytest.mark.full
def test_alternating_steps_bring_the_codes_closer_before_the_task_step():
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)}
    parts = {"model": model_of(learned()), "optimizer": optax.sgd(0.1), "loss": squared_error}
    results = []
    for task in (AlternatingTask(**parts, codebook_steps=5, codebook_learning_rate=5.0), VQVAETask(**parts)):
        state = task.init(jax.random.key(0), batch)
        after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
        codes = [s.params[NETWORK]["quantizer"]["codes"] for s in (state, after)]
        results.append((metrics["quantization_error"], *codes))
    (error, before, after), (plain_error, plain_before, plain_after) = results
    assert float(error) < 0.9 * float(plain_error)
    assert bool(jnp.any(after != before))
    # The task alone does not move the codes.
    np.testing.assert_array_equal(plain_after, plain_before)


@pytest.mark.parametrize(
    ("quantizer", "options", "message"),
    [
        (FSQ(levels=(4, 4)), {}, "quantizer must be learned by gradient .*, got FSQ"),
        (VectorQuantizer(num_codes=16, codebook="gradient"), {}, "quantizer's codebook.weight must be 0 .*, got 1.0"),
        (learned(), {"codebook_steps": 0}, r"codebook_steps must be an integer in \[1, 1000\], got 0"),
        (learned(), {"codebook_learning_rate": 0.0}, "codebook_learning_rate must be a finite number above 0, got 0.0"),
        (learned(), {"codebook_learning_rate": math.nan}, "codebook_learning_rate must be a finite .*, got nan"),
        (learned(), {"codebook_momentum": 1.0}, r"codebook_momentum must be a number in \[0, 1\), got 1.0"),
    ],
)
def test_steps_that_cannot_work_are_refused(quantizer, options, message):
    with pytest.raises(UserError, match=message):
        AlternatingTask(model_of(quantizer), optax.sgd(0.1), squared_error, **options)


@pytest.mark.full
def test_a_run_with_every_remedy_resumes_and_ends(config, tmp_path):
    config.quantizer = quantizers.defaults(
        "vq",
        num_codes=16,
        codebook={
            "name": "gradient",
            "weight": 0.0,
            "sync_nu": 0.2,
            "replace": {"unused_after": 3, "below": None},
            "transform": "learned_affine",
        },
        regularizers={"diversity": {"weight": 0.1}},
        heads=2,
        separate_codebooks=True,
        codebook_dim=3,
    )
    config.task = {"name": "alternating", "ema_decay": 0.9}
    whole = train(config, tmp_path / "whole", devices=jax.devices()[:1])
    config.num_steps = 5
    train(config, tmp_path / "cut", devices=jax.devices()[:1])
    config.num_steps = 12
    assert train(config, tmp_path / "cut", devices=jax.devices()[:1]).metrics == whole.metrics
