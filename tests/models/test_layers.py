"""Convolutions that are computed in other ways are those of Flax: same parameters, same values, same gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.errors import UserError
from vqjax.models import ResidualEncoder, SonnetEncoder, ViTEncoder, VQGANEncoder
from vqjax.models.discriminators import PatchGAN, StyleGANDiscriminator
from vqjax.models.layers import DownsamplingConv, UpsamplingConv, clips_conv, pointwise_conv

LAYERS = {
    "down": (DownsamplingConv(5), nn.Conv(5, (4, 4), strides=2, padding=1)),
    "down of 3x3": (DownsamplingConv(5, kernel_size=3), nn.Conv(5, (3, 3), strides=2, padding=1)),
    "pointwise": (pointwise_conv(5), nn.Conv(5, (1, 1))),
    "up": (UpsamplingConv(5), nn.ConvTranspose(5, (4, 4), strides=(2, 2), padding="SAME")),
    **{
        f"clips, {name}": tuple(layer(5, size, **options) for layer in (clips_conv, nn.Conv))
        for name, size, options in (
            ("patchgan", (4, 4, 4), dict(strides=2, padding=2)),
            ("i3d", (3, 3, 3), dict(strides=(2, 1, 1), padding="SAME")),
            ("valid", (2, 1, 3), dict(strides=(1, 2, 3), padding=((0, 0), (1, 2), (3, 0)))),
        )
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_value_and_gradient_equal_those_of_flax(name):
    layer, reference = LAYERS[name]
    x = gaussian(2, 5, 6, 7, 3) if name.startswith("clips") else gaussian(2, 6, 10, 3)
    params = {"kernel": gaussian(*reference.kernel_size, 3, 5, seed=1), "bias": gaussian(5, seed=2)}

    def loss(layer, params, x):
        y = layer.apply({"params": params}, x)
        return jnp.sum(y**3), y

    def run(layer):
        return jax.jit(jax.grad(lambda *a: loss(layer, *a), argnums=(0, 1), has_aux=True))(params, x)

    (of_params, of_x), y = run(layer)
    (expected_params, expected_x), expected = run(reference)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(of_x, expected_x, rtol=1e-3, atol=1e-2)
    for key in params:
        np.testing.assert_allclose(of_params[key], expected_params[key], rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_parameters_are_those_of_flax(name):
    # A kernel of the same shape with another fan-in would start at another scale.
    layer, reference = LAYERS[name]
    x = jnp.zeros((1, 4, 4, 4, 3) if name.startswith("clips") else (1, 4, 4, 3))
    actual, expected = (module.init(jax.random.key(0), x)["params"] for module in (layer, reference))
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_array_equal(actual["kernel"], expected["kernel"])
    np.testing.assert_array_equal(actual["bias"], 0)


def test_a_convolution_without_bias_has_none():
    layer, x = DownsamplingConv(5, kernel_size=3, use_bias=False), gaussian(1, 4, 4, 3)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    expected = nn.Conv(5, (3, 3), strides=2, padding=1, use_bias=False).apply(variables, x)
    assert set(variables["params"]) == {"kernel"}
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_an_odd_number_of_pixels_is_refused():
    with pytest.raises(UserError, match="even height and width, got 8 x 9; use images"):
        DownsamplingConv(features=2).init(jax.random.key(0), jnp.zeros((1, 8, 9, 3)))


@pytest.mark.parametrize("layer", [DownsamplingConv(features=2), UpsamplingConv(features=2)])
def test_images_of_another_dtype_are_promoted_as_flax_does(layer):
    images = jnp.zeros((1, 4, 4, 3), jnp.bfloat16)
    assert layer.init_with_output(jax.random.key(0), images)[0].dtype == jnp.float32


ENCODERS = {
    "residual": ResidualEncoder(width=8),
    "sonnet": SonnetEncoder(width=8),
    "vqgan": VQGANEncoder(channels=32),
    "vit": ViTEncoder(dim=8, depth=1, heads=1, mlp_dim=8),
    "patch_gan": PatchGAN(channels=8),
    "stylegan": StyleGANDiscriminator(channels=(8, 8)),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), "`images` must be floats in .* got uint8"),
        (np.zeros((2, 16, 16, 3), int), "`images` must be floats in .* got int64"),
        ([[1.0]], "`images` must be floats in .* got list"),
        (np.zeros((16, 16, 3), np.float32), r"must be \[batch, height, width, channels\], got shape \(16, 16, 3\)"),
        (np.zeros((2, 1, 16, 16, 3), np.float32), r"got shape \(2, 1, 16, 16, 3\); pass the frames of clips"),
    ],
)
def test_what_takes_images_refuses_other_types_and_ranks(name, images, message):
    """Bug: bytes became floats in [0, 255] without a word, and a single image a stack of lines."""
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: ENCODERS[name].init(jax.random.key(0), images, *[False] * (name == "patch_gan")))
