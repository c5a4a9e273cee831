"""Adversarial losses, their balance and their regularizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from helpers.goldens import assert_equal, channels_last, golden, patchgan_variables, weights
from vqjax.importing import taming
from vqjax.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight, lecam_penalty, r1_penalty
from vqjax.models.discriminators import PatchGAN


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_each_side_gains_where_the_other_loses(name):
    losses = ADVERSARIAL_LOSSES[name]
    real, fake = jnp.full(3, 0.25), jnp.full(3, 0.1)
    # The discriminator wants real logits up and generated ones down, the generator its own up.
    of_real, of_fake = jax.grad(losses.discriminator, argnums=(0, 1))(real, fake)
    assert (of_real < 0).all()
    assert (of_fake > 0).all()
    assert (jax.grad(losses.generator)(fake) < 0).all()


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("hinge", (0.5 + 3) / 2, 0.5),
        ("vanilla", (np.log1p(np.exp(-0.5)) + (np.log1p(np.exp(2.0)) + np.log1p(np.exp(-3.0))) / 2) / 2, 0.5),
        ("non_saturating", None, (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(3.0))) / 2),
        ("least_squares", (0.25 + (4 + 9) / 2) / 2, (1 + 16) / 2 / 2),
    ],
)
def test_values_by_hand(name, discriminator, generator):
    losses = ADVERSARIAL_LOSSES[name]
    real, fake = jnp.array([0.5]), jnp.array([2.0, -3.0])
    if name == "hinge":
        discriminator = (0.5 + (3.0 + 0.0) / 2) / 2
    if discriminator is not None:
        np.testing.assert_allclose(losses.discriminator(real, fake), discriminator, rtol=1e-6)
    np.testing.assert_allclose(losses.generator(fake), generator, rtol=1e-6)


@pytest.mark.full
def test_the_adaptive_weight_is_the_recorded_one():
    arrays, facts = golden("adaptive_weight")
    model, variables = taming(weights(arrays), golden("taming_vqmodel")[1])
    of_discriminator, _ = patchgan_variables(weights(arrays, "disc."), 2)
    images = channels_last(arrays["x"])

    def decode_halfway(model, images):
        codes = model.quantizer(model.encoder(images), train=False).quantized
        return model.decoder.features(codes)

    features = model.apply(variables, images, method=decode_halfway)
    last_layer = variables["params"]["decoder"]["conv_out"]

    def reconstruct(kernel):
        params = {"conv_out": last_layer | {"kernel": kernel}}
        return model.decoder.apply({"params": params}, features, method="to_images")

    def adversarial(kernel):
        discriminator = PatchGAN(channels=8, num_layers=2)
        return ADVERSARIAL_LOSSES["hinge"].generator(
            discriminator.apply(of_discriminator, reconstruct(kernel), train=True, mutable=["batch_stats"])[0]
        )

    of_reconstruction = jax.grad(lambda kernel: jnp.mean(jnp.abs(reconstruct(kernel) - images)))(last_layer["kernel"])
    of_adversarial = jax.grad(adversarial)(last_layer["kernel"])
    assert_equal(jnp.linalg.norm(of_reconstruction), arrays["nll_norm"])
    assert_equal(jnp.linalg.norm(of_adversarial), arrays["g_norm"])
    weight = facts["discriminator_weight"] * adaptive_weight(of_reconstruction, of_adversarial)
    assert_equal(weight, arrays["adaptive_weight"])


def test_the_adaptive_weight_is_capped_and_constant():
    assert float(adaptive_weight(jnp.ones(3), jnp.zeros(3), largest=50.0)) == 50.0
    assert float(jax.grad(lambda x: adaptive_weight(x, x))(jnp.array(2.0))) == 0.0


def test_r1_is_the_squared_gradient_of_each_logit():
    weights_of_pixels, images = gaussian(4, 4, 3), gaussian(5, 4, 4, 3, seed=1)
    penalty = r1_penalty(lambda x: jnp.einsum("bhwc,hwc->b", x, weights_of_pixels), images)
    np.testing.assert_allclose(penalty, jnp.sum(jnp.square(weights_of_pixels)), rtol=1e-5)


def test_lecam_leaves_logits_alone_that_are_apart_by_less_than_the_averages():
    real, fake = jnp.array([0.2]), jnp.array([-0.2])
    assert float(lecam_penalty(real, fake, jnp.array(-1.0), jnp.array(1.0))) == 0.0
    np.testing.assert_allclose(lecam_penalty(real, fake, jnp.array(1.0), jnp.array(-1.0)), 2 * 1.2**2, rtol=1e-6)
