"""Lengths and directions against float64, from vectors whose squares underflow to vectors whose squares overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax.functional.norms import MIN_LENGTH, length_and_direction, normalize


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-6, 1.0, 1e20, 1e37])
def test_lengths_are_right_where_their_squares_leave_the_range_of_float32(scale):
    x = normal(5, 7) * np.float32(scale)
    length, direction = length_and_direction(jnp.asarray(x))
    expected = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(length, expected, rtol=1e-6)
    np.testing.assert_allclose(direction, x / expected, atol=1e-6)


def test_a_zero_vector_has_length_zero_and_direction_zero():
    length, direction = length_and_direction(jnp.zeros((2, 3)))
    assert length.tolist() == [[0.0], [0.0]]
    assert direction.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lengths_are_float32_and_do_not_add_up_in_the_short_type(dtype):
    # 4096 ones: a bfloat16 sum of squares stops growing at 256, a float16 one at 2048.
    length, direction = length_and_direction(jnp.ones(4096, dtype))
    assert length.dtype == direction.dtype == jnp.float32
    assert length.tolist() == [64.0]


def test_normalized_vectors_have_length_one_and_shorter_than_the_shortest_become_zero():
    z = jnp.array([[3e30, 4e30], [0.6 * 1.1 * MIN_LENGTH, 0.8 * 1.1 * MIN_LENGTH], [0.9 * MIN_LENGTH, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(z), [[0.6, 0.8], [0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_normalize_keeps_the_dtype(dtype):
    unit = normalize(jnp.full((4, 300), 100.0, dtype))
    assert unit.dtype == dtype
    np.testing.assert_allclose(unit.astype(jnp.float32), 300**-0.5, rtol=4e-3)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e10])
def test_the_gradient_of_normalize_is_the_projection_onto_the_tangent_space(scale):
    z, g = normal(6, 5) * np.float32(scale), normal(6, 5, seed=1)
    gradient = jax.vjp(normalize, jnp.asarray(z))[1](jnp.asarray(g))[0]
    length = np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True)
    u = z / length
    expected = (g - u * np.sum(u * g, -1, keepdims=True)) / length
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 / scale)


def test_the_gradient_of_a_vector_too_short_is_zero_beside_one_that_is_not():
    z = jnp.array([[0.0, 0.0], [0.1 * MIN_LENGTH, 0.0], [3.0, 4.0]])
    gradient = jax.grad(lambda z: jnp.sum(normalize(z)[:, 1]))(z)
    np.testing.assert_allclose(gradient, [[0, 0], [0, 0], [-0.096, 0.072]], atol=1e-6)
