import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.data import augment, to_model_range, to_uint8
from vqjax.errors import UserError


@pytest.fixture
def images():
    return jax.random.randint(jax.random.key(1), (64, 8, 6, 3), 0, 256).astype(jnp.uint8)


def test_without_flip_and_padding_nothing_changes(images):
    np.testing.assert_array_equal(augment(jax.random.key(0), images, flip=False, crop_padding=None), images)


def test_about_half_of_the_images_are_mirrored_and_the_others_untouched(images):
    result = np.asarray(augment(jax.random.key(0), images, flip=True, crop_padding=None))
    same = (result == np.asarray(images)).all((1, 2, 3))
    mirrored = (result == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_crops_are_windows_of_the_reflected_image(images):
    result = np.asarray(augment(jax.random.key(0), images, flip=False, crop_padding=2))
    padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    corners = set()
    for crop, source in zip(result, padded, strict=True):
        windows = [(y, x) for y in range(5) for x in range(5) if (source[y : y + 8, x : x + 6] == crop).all()]
        assert len(windows) == 1
        corners.update(windows)
    assert len(corners) > 15, "64 images should reach most of the 25 corners"


def test_the_same_key_gives_the_same_images_also_under_jit_and_over_devices(images, eight_devices):
    key = jax.random.key(5)
    expected = augment(key, images, flip=True, crop_padding=2)
    sharding = jax.sharding.NamedSharding(eight_devices, jax.sharding.PartitionSpec("data"))
    sharded = jax.device_put(images, sharding)
    result = jax.jit(lambda key, images: augment(key, images, flip=True, crop_padding=2))(key, sharded)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("crop_padding", [-1, 0, 6])
def test_impossible_padding_is_refused(images, crop_padding):
    with pytest.raises(UserError, match=rf"crop_padding must be in \[1, 5\] .* got {crop_padding}; use None"):
        augment(jax.random.key(0), images, flip=False, crop_padding=crop_padding)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_pixel_value_survives_the_round_trip(array):
    values = array(np.arange(256, dtype=np.uint8))
    scaled = to_model_range(values)
    assert scaled.dtype == jnp.float32
    assert (scaled.min(), scaled.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(scaled), values)


def test_model_outputs_beyond_the_range_are_clipped_and_rounded_not_truncated():
    values = np.array([-3.0, 3.0, 0.999], np.float32)
    assert to_uint8(values).tolist() == [0, 255, 255]
    assert to_uint8(jnp.asarray(values, jnp.bfloat16)).tolist() == [0, 255, 255]
