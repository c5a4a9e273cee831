"""Scalings of images: what they keep, and what tells them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import UserError
from vqjax.evaluation.scaling import SCALINGS

each_scaling = pytest.mark.parametrize("name", SCALINGS)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3), np.uint8)


def scaled(name, images, size):
    return np.asarray(jax.jit(SCALINGS[name], static_argnums=1)(jnp.asarray(images), size))


@each_scaling
@pytest.mark.parametrize("size", [31, (9, 13)])
def test_pixels_stay_in_range_and_one_color_stays_itself(name, size):
    assert scaled(name, IMAGES, size).shape == (3, *((size, size) if size == 31 else size), 3)
    # An optimized program multiplies by the reciprocal of the divisor, which is rounded.
    assert np.abs(scaled(name, IMAGES, size)).max() <= 1 + 1e-6
    gray = scaled(name, np.full_like(IMAGES, 77), size)
    expected = (77 - 128) / 128 if name in ("clean-fid", "tf1") else 77 / 127.5 - 1
    np.testing.assert_allclose(gray, expected, atol=1e-5)


@each_scaling
def test_an_image_of_the_right_size_is_not_resized(name):
    images = IMAGES[:, :12, :12]
    np.testing.assert_allclose(scaled(name, images, 12), images / SCALINGS[name].divisor - 1, atol=1e-5)


@each_scaling
def test_only_interpolation_from_corners_moves_an_image(name):
    """It is not that of the mirrored image mirrored."""
    both = scaled(name, np.stack([IMAGES, IMAGES[:, ::-1, ::-1]]).reshape(6, 12, 20, 3), 31).reshape(2, 3, 31, 31, 3)
    difference = np.abs(both[0] - both[1, :, ::-1, ::-1]).max()
    # A tie may be rounded either way.
    assert difference > 0.1 if SCALINGS[name].from_corners else difference < 1.01 / 127.5


@each_scaling
def test_only_cubic_interpolation_blurs_what_it_shrinks(name):
    """Stripes of one pixel become gray, unless some of them are left out."""
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 255
    spread = np.ptp(scaled(name, stripes, 11)[:, 3:-3, 3:-3])
    assert (spread < 0.1) == SCALINGS[name].antialias


@each_scaling
def test_padding_has_no_weight(name):
    """So that images of many sizes share a program."""
    scaling = SCALINGS[name]
    padded = np.pad(IMAGES, [(0, 0), (0, 4), (0, 12), (0, 0)], constant_values=255)
    rows, columns = np.pad(scaling.weights(12, 9), [(0, 4), (0, 0)]), np.pad(scaling.weights(20, 9), [(0, 12), (0, 0)])
    np.testing.assert_allclose(scaling.apply(jnp.asarray(padded), rows, columns), scaled(name, IMAGES, 9), atol=1e-6)


def test_images_of_other_than_8_bits_are_refused():
    with pytest.raises(UserError, match="`images` must be uint8, got float32; round pixels to 8 bits"):
        SCALINGS["tf1"](jnp.zeros((1, 4, 4, 3), jnp.float32), 8)
