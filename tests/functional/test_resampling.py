"""Pooling and interpolation beside their definitions in NumPy and beside jax.image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import gaussian
from vqjax.functional.resampling import adaptive_average_pool, interpolate_linearly

SIZES = pytest.mark.parametrize(("size", "wanted"), [(5, 1), (5, 2), (7, 3), (6, 3), (4, 4), (3, 5), (1, 4)])


@SIZES
def test_windows_run_from_the_floor_to_the_ceiling(size, wanted):
    x = gaussian(2, size, 3)
    pooled, mask = adaptive_average_pool(x, (wanted,))
    for i in range(wanted):
        window = np.asarray(x)[:, int(np.floor(i * size / wanted)) : int(np.ceil((i + 1) * size / wanted))]
        np.testing.assert_allclose(pooled[:, i], window.mean(axis=1), atol=1e-6)
    assert mask is None


def test_averages_are_over_unmasked_positions_of_boxes_and_ignore_what_the_others_hold():
    x, mask = np.array(gaussian(2, 5, 4, 3)), np.asarray(gaussian(2, 5, 4, seed=1)) > 0
    mask[0, :3, :2] = False
    x[~mask] = np.nan
    pooled, pooled_mask = adaptive_average_pool(jnp.asarray(x), (2, 2), jnp.asarray(mask))
    for b, i, j in np.ndindex(2, 2, 2):
        box = (b, slice(*[(0, 3), (2, 5)][i]), slice(*[(0, 2), (2, 4)][j]))
        assert bool(pooled_mask[b, i, j]) == mask[box].any()
        expected = x[box][mask[box]].mean(axis=0) if mask[box].any() else np.zeros(3)
        np.testing.assert_allclose(pooled[b, i, j], expected, atol=1e-6)
    assert not pooled_mask[0, 0, 0]


@SIZES
def test_interpolation_is_that_of_jax_image_without_antialiasing(size, wanted):
    x = gaussian(2, size, 3, 4)
    expected = jax.image.resize(x, (2, wanted, 5, 4), "linear", antialias=False, precision="highest")
    np.testing.assert_allclose(interpolate_linearly(x, (wanted, 5)), expected, atol=1e-6)


def test_interpolation_gives_the_same_bits_compiled_and_not():
    # jax.image.resize computes its weights in the program, where a compiler may round them otherwise.
    x = gaussian(3, 7, 5, 4)
    compiled = jax.jit(lambda x: 2 * interpolate_linearly(x, (11, 9)) - x[:, :1, :1])(x)
    np.testing.assert_array_equal(compiled, 2 * interpolate_linearly(x, (11, 9)) - x[:, :1, :1])


def test_bfloat16_is_averaged_and_interpolated_in_float32():
    x = jnp.ones((1, 1000, 1), jnp.bfloat16)
    pooled, _ = adaptive_average_pool(x, (1,))
    assert pooled.dtype == jnp.bfloat16
    assert float(pooled[0, 0, 0]) == 1
    assert interpolate_linearly(pooled, (3,)).dtype == jnp.bfloat16
