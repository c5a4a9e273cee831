"""Encoder and decoder of VQGAN."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError
from vqjax.models.vqgan import VQGANDecoder, VQGANEncoder

SMALL = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "resolution": 8}


def encoder(**options):
    return VQGANEncoder(**SMALL | {"latent_dim": 4} | options)


def decoder(**options):
    return VQGANDecoder(**SMALL | options)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(encoder().init)(jax.random.key(0), gaussian(1, 8, 8, 3))


@pytest.mark.parametrize(
    ("channels", "multipliers", "latent_dim", "attention", "middle", "millions"),
    [
        # Tables 1 and 3 of the rotation-trick paper, and taming's model for ImageNet: encoder and decoder.
        (128, (1, 1, 2, 2, 4), 256, (16,), True, (29.30, 42.45)),
        (128, (1, 2, 4), 3, (), True, (22.34, 32.96)),
    ],
)
def test_the_published_models_have_the_published_number_of_parameters(
    channels, multipliers, latent_dim, attention, middle, millions
):
    size = {"channels": channels, "multipliers": multipliers, "attention_resolutions": attention}
    size |= {"middle_attention": middle}
    pixels = 2 ** (len(multipliers) - 1)
    images, codes = jnp.zeros((1, pixels, pixels, 3)), jnp.zeros((1, 1, 1, latent_dim))
    for module, x, expected in (
        (VQGANEncoder(**size, latent_dim=latent_dim), images, millions[0]),
        (VQGANDecoder(**size), codes, millions[1]),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert round(count / 1e6, 2) == expected


@pytest.mark.full
def test_images_of_any_size_keep_attention_at_the_same_levels(variables):
    # The resolution is that of the model, not that of the image.
    assert "level_1_attention_0" in variables["params"]
    assert "level_0_attention_0" not in variables["params"]
    assert encoder().apply(variables, gaussian(2, 16, 12, 3)).shape == (2, 8, 6, 4)


@pytest.mark.full
def test_an_odd_size_is_rounded_down(variables):
    # Padded at the bottom and on the right, as in the original; "SAME" would round up.
    assert encoder().apply(variables, gaussian(1, 9, 11, 3)).shape == (1, 4, 5, 4)


@pytest.mark.full
def test_recomputed_blocks_have_the_same_gradient(variables):
    images = gaussian(2, 8, 8, 3)

    def gradient(module):
        return jax.jit(jax.grad(lambda variables: jnp.sum(jnp.square(module.apply(variables, images)))))(variables)

    kept, recomputed = gradient(encoder()), gradient(encoder(remat=True))
    for first, second in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_bfloat16_keeps_latents_images_and_parameters_in_float32():
    for module, x in ((encoder(), gaussian(1, 8, 8, 3)), (decoder(), gaussian(1, 4, 4, 4))):
        module = module.clone(dtype="bfloat16")
        y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
        assert y.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.full
def test_features_and_last_layer_make_the_image():
    module, codes = decoder(latent_dim=8), gaussian(1, 4, 4, 4)
    images, variables = jax.jit(module.init_with_output)(jax.random.key(0), codes)
    features = module.apply(variables, codes, method="features")
    np.testing.assert_allclose(module.apply(variables, features, method="to_images"), images, rtol=1e-5, atol=1e-5)
    assert images.shape == (1, 8, 8, 3)


@pytest.mark.full
def test_dropout_draws_in_training_alone(variables):
    module, images = encoder(dropout=0.5), gaussian(1, 8, 8, 3)
    evaluated = module.apply(variables, images, train=False)
    np.testing.assert_array_equal(evaluated, encoder().apply(variables, images))
    trained = module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(trained, evaluated)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("make", [VQGANEncoder, VQGANDecoder])
def test_sizes_that_make_no_model_are_rejected(make):
    for field, values, message in (
        ("channels", (48, 16), "a multiple of 32, the groups of the norms"),
        ("channels", (0, -32, 32.0, True, "32", None), r"an integer in \[1, 8192\]"),
        ("multipliers", ((), (0,), (1, 65), (1, 2.0), (True,), 2, "12"), r"one or more integers in \[1, 64\]"),
        ("num_res_blocks", (0, -1, 1.5, 101), r"an integer in \[1, 100\]"),
        ("attention_resolutions", ((-1,), (0,), (16.0,), (True,), 16, None), "a tuple of positive integers"),
        ("resolution", (0, -1, 256.0, None), "a positive integer"),
        ("dropout", (-0.1, 1.0, math.nan, math.inf, True, "0.1"), r"a number in \[0, 1\), or None"),
        ("middle_attention", (1, "False", None), "True or False"),
        ("remat", (0, "True", None), "True or False"),
        ("dtype", ("nonsense", "int32", 16), "a floating-point dtype"),
        ("latent_dim", (0, -4, 4.0, 10**9), r"an integer in \[1, 8192\]"),
    ):
        for value in values:
            with pytest.raises(UserError, match=rf"^{field} must be {message}.*, got {re.escape(repr(value))}"):
                make(**{field: value})


@pytest.mark.usefixtures("as_users_run_it")
def test_sizes_of_codes_and_images_are_checked():
    with pytest.raises(UserError, match=r"^code_dim must be an integer in \[1, 8192\], got 0"):
        VQGANEncoder(code_dim=0)
    with pytest.raises(UserError, match=r"^image_channels must be an integer in \[1, 8192\], got 3.0"):
        VQGANDecoder(image_channels=3.0)


def test_no_attention_and_no_dropout_are_no_mistakes():
    assert encoder(attention_resolutions=(), dropout=0.0, dtype=jnp.bfloat16).attention_resolutions == ()
