"""The door of a trained tokenizer: what it takes means one thing, and everything else is refused by name."""

import functools
import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers.arrays import gaussian
from vqjax import Tokenizer
from vqjax.data import to_model_range, to_uint8
from vqjax.errors import UserError
from vqjax.models.registry import build_model

pytestmark = pytest.mark.usefixtures("as_users_run_it")

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
SCALED = np.asarray(IMAGES, np.float32) / 127.5 - 1


@functools.cache
def tokenizer(**model):
    options = {"name": "sonnet", "width": 8, "num_residual_blocks": 1, "latent_dim": 4} | model
    model = build_model(options, {"name": "vq", "num_codes": 16})
    channels = options.get("image_channels", 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, channels)))
    return Tokenizer(model, jax.tree.map(lambda leaf: 0.3 * gaussian(*leaf.shape, seed=leaf.size), shapes), {}, 0)


def test_uint8_and_floats_in_the_models_range_are_the_same_images():
    """Bug: images of 8 bits were taken for floats 128 times too bright, and 2 % of the indices were right."""
    expected = tokenizer().encode(SCALED)
    np.testing.assert_array_equal(tokenizer().encode(IMAGES), expected)
    np.testing.assert_array_equal(tokenizer().encode(jnp.asarray(IMAGES)), expected)
    np.testing.assert_array_equal(tokenizer().encode(SCALED.astype(np.float64)), expected)
    assert len(np.unique(expected)) > 4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (SCALED * 127.5 + 127.5, r"`images` must be floats in \[-1, 1\], got values from 0 to 255; pass uint8, or"),
        ((SCALED - 0.1) / 0.23, r"`images` must be floats in \[-1, 1\], got values from -4.78 to"),
        (np.where(SCALED > 0.9, np.nan, SCALED), r"got values that are not finite"),
        (np.where(SCALED > 0.9, np.inf, SCALED), r"got values that are not finite"),
        (IMAGES.astype(np.int32), r"`images` must be floats in \[-1, 1\], got int32; pass uint8"),
        (IMAGES.astype(bool), r"got bool"),
        (SCALED.astype(np.complex64), r"got complex64"),
        (IMAGES.astype(str), r"got <U"),
        (IMAGES.astype(object), r"got object"),
        ([[1, 2], [3, 4]], r"must be \[batch, height, width, channels\], got shape \(2, 2\); stack whole images"),
        (IMAGES[0], r"got shape \(16, 16, 3\); add the axis of the batch with images\[None\]"),
        (Image.fromarray(IMAGES[0]), r"got shape \(16, 16, 3\); add the axis of the batch"),
        (IMAGES[None], r"got shape \(1, 2, 16, 16, 3\)"),
        (np.moveaxis(IMAGES, -1, 1), r"move the channels to the end with numpy.moveaxis\(images, 1, -1\)"),
        (IMAGES[..., :1], r"`images` must fit the model, got shape \(2, 16, 16, 1\); pass images of the channels"),
        (np.concatenate([IMAGES, IMAGES], -1), r"`images` must fit the model, got shape \(2, 16, 16, 6\)"),
        (IMAGES[:, :15], r"even height and width"),
    ],
)
def test_what_are_no_images_is_refused(images, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer().encode(images)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_images_that_look_like_another_range_are_warned_of():
    with pytest.warns(UserWarning, match=r"must be in \[-1, 1\], got values from 0 to 1: if they are of \[0, 1\]"):
        tokenizer().encode((SCALED + 1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer().encode(np.zeros_like(SCALED))
        tokenizer().encode(np.full_like(IMAGES, 200))


def test_reconstructions_that_overshoot_can_be_encoded():
    assert tokenizer().encode(1.2 * SCALED).shape == (2, 4, 4)


def test_the_range_is_not_checked_inside_of_jit():
    indices = jax.jit(lambda images: tokenizer().encode(images))(jnp.asarray(SCALED))
    np.testing.assert_array_equal(indices, tokenizer().encode(SCALED))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.zeros((2, 4, 4)), r"`indices` must be integers, got float64"),
        (np.zeros((2, 4, 4), bool), r"`indices` must be integers, got bool"),
        (np.full((2, 4, 4), 16), r"`indices` must be in \[0, 15\], got 16 to 16"),
        (np.full((2, 4, 4), -2), r"`indices` must be in \[0, 15\], got -2 to -2"),
        (np.full((2, 4, 4), 2**32 + 3), r"got 4294967299 to 4294967299"),
        (np.full((2, 4, 4), 255, np.uint8), r"got 255 to 255"),
        (jnp.full((2, 4, 4), 99), r"got 99 to 99"),
        (np.zeros((4, 4), int), r"got shape \(4, 4\) .*; pass what encode returns, with the axis of the batch"),
        (np.zeros((2, 16), int), r"got shape \(2, 16\)"),
        (np.zeros(16, int), r"`indices` must fit the model, got shape \(16,\)"),
        (np.zeros((2, 4, 4, 4), int), r"indices"),
    ],
)
def test_what_are_no_indices_is_refused(indices, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer().decode(indices)
    assert "\n" not in str(error.value)


def test_each_codebook_has_its_own_largest_index():
    """Bug: an index beyond a smaller codebook was decoded to an image of NaN."""
    quantizer = {"name": "residual", "quantizer": {"name": "vq", "num_codes": 16}, "num_quantizers": 2}
    model = build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, quantizer | {"stage_sizes": (16, 4)})
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    own = Tokenizer(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables), {}, 0)
    with pytest.raises(UserError, match="`indices` must be below 4 in codebook 1, got 10; pass what encode"):
        own.decode(np.full((1, 2, 2, 2), 10))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_indices_of_any_integer_type_are_decoded(dtype):
    indices = np.asarray(tokenizer().encode(IMAGES))
    np.testing.assert_array_equal(tokenizer().decode(indices.astype(dtype)), tokenizer().decode(indices))


@pytest.mark.parametrize(("channels", "name"), [(1, "sonnet"), (4, "sonnet"), (1, "residual"), (4, "residual")])
def test_images_need_not_be_square_or_have_three_channels(channels, name):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 24, channels), np.uint8)
    own = tokenizer(name=name, image_channels=channels)
    indices = own.encode(images)
    assert indices.shape == (2, 2, 6)
    assert own.decode(indices).shape == images.shape


@pytest.mark.parametrize("images", [IMAGES, IMAGES.astype(np.int32), IMAGES.tolist()], ids=["uint8", "int32", "list"])
def test_the_autoencoder_itself_takes_floats(images):
    """Bug: uint8 images were promoted to floats in [0, 255] without a word."""
    for method in ("__call__", "encode", "latents", "reconstruct"):
        with pytest.raises(UserError, match=r"`images` must be floats in \[-1, 1\], got (uint8|int32|list); scale"):
            tokenizer().model.apply(tokenizer().variables, images, method=method)


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16), (1, 2, 16, 16, 3)])
@pytest.mark.parametrize("name", ["sonnet", "residual"])
def test_images_of_another_rank_are_refused_by_the_layers(name, shape):
    own = tokenizer(name=name)
    with pytest.raises(UserError, match=r"must be \[batch, height, width, channels\], got shape"):
        own.model.apply(own.variables, jnp.zeros(shape), method="encode")


def test_conversions_between_ranges_take_what_they_convert():
    """Bug: floats came out of to_model_range divided by 127.5, and uint8 wrapped around in to_uint8."""
    with pytest.raises(UserError, match="`images` must be uint8, got float32"):
        to_model_range(SCALED)
    with pytest.raises(UserError, match=r"must be floats in \[-1, 1\], got uint8"):
        to_uint8(jnp.asarray(IMAGES))


def test_an_image_file_goes_in_and_comes_out():
    content = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(content, "PNG")
    with Image.open(content) as image:
        indices = tokenizer().encode(np.asarray(image)[None])
    np.testing.assert_array_equal(indices, tokenizer().encode(IMAGES[:1]))
