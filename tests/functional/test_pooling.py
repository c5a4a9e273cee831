"""Pooling of whole vectors beside loops over windows in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.quantizing import gaussian
from vqjax import UserError
from vqjax.functional.pooling import max_vector_pool, softmax_vector_pool

SHAPE = (2, 7, 6, 3)
GEOMETRIES = [(3, 2, 0, 1), (3, 2, 2, 1), (2, 1, 1, 2), (2, 3, 3, 3), (1, 1, 0, 1)]
compiled = functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
longest, softened = compiled(max_vector_pool), compiled(softmax_vector_pool)


def by_loops(x, window, stride, padding, dilation, pool):
    """Windows as lists of the vectors that lie inside."""
    x = np.asarray(x, np.float64)
    height, width = x.shape[1:3]
    reach = dilation * (window - 1)

    def starts(size):
        return range(-padding, size + padding - reach, stride)

    def vectors(image, row, column):
        steps = range(0, reach + 1, dilation)
        positions = ((row + i, column + j) for i, j in itertools.product(steps, steps))
        return [image[i, j] for i, j in positions if 0 <= i < height and 0 <= j < width]

    pooled = [[[pool(vectors(image, i, j)) for j in starts(width)] for i in starts(height)] for image in x]
    return np.asarray(pooled)


def choose(vectors):
    return max(vectors, key=np.linalg.norm) if vectors else np.zeros(SHAPE[-1])


def soften(vectors):
    weights = np.exp([np.linalg.norm(v) for v in vectors])
    return sum(w * v for w, v in zip(weights / weights.sum(), vectors, strict=True)) if vectors else choose([])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), geometry=st.sampled_from(GEOMETRIES))
def test_every_window_is_that_of_a_loop(seed, geometry):
    # vqtorch counts rows as if dilation were 1, and fails for any other.
    x = gaussian(*SHAPE, seed=seed)
    np.testing.assert_array_equal(longest(x, *geometry), by_loops(x, *geometry, choose).astype(np.float32))
    np.testing.assert_allclose(softened(x, *geometry), by_loops(x, *geometry, soften), rtol=1e-5, atol=1e-6)


def test_padding_has_no_weight():
    # In vqtorch the zeros of the padding enter the softmax, and shrink the corners.
    x = jnp.ones((4, 4, 1))
    np.testing.assert_allclose(softmax_vector_pool(x, 3, 1, 1), x, rtol=1e-6)
    # Nor does it win where all vectors are zero, or anything where there is no vector at all.
    assert not np.any(longest(jnp.zeros(SHAPE), 3, 2, 2, 1))
    assert bool(jnp.all(softened(gaussian(*SHAPE), 1, 1, 1, 1)[:, 0] == 0))


def test_ties_go_to_the_first_position_and_leading_axes_are_free():
    x = jnp.array([[[0.0, 2.0], [2.0, 0.0]], [[-2.0, 0.0], [0.0, -2.0]]])
    assert max_vector_pool(x, window=2, stride=2).tolist() == [[[0.0, 2.0]]]
    many = jnp.stack([x, x])[None]
    assert max_vector_pool(many, window=2, stride=2).shape == (1, 2, 1, 1, 2)


def test_gradients_go_to_the_vectors_alone():
    x = gaussian(2, 2, 3)
    chosen = jax.grad(lambda x: jnp.sum(max_vector_pool(x, 2)))(x)
    norms = np.linalg.norm(x, axis=-1)
    np.testing.assert_array_equal(chosen, np.broadcast_to((norms == norms.max())[..., None], x.shape))
    weights = np.exp(norms) / np.exp(norms).sum()
    slope = jax.grad(lambda x: jnp.sum(softmax_vector_pool(x, 2)))(x)
    np.testing.assert_allclose(slope, np.broadcast_to(weights[..., None], x.shape), rtol=1e-5)
    at_zero = jax.grad(lambda x: jnp.sum(softmax_vector_pool(x, 3, 1, 2)))(jnp.zeros((2, 2, 3)))
    assert bool(jnp.all(jnp.isfinite(at_zero)))


@pytest.mark.parametrize("function", [longest, softened])
def test_bfloat16_stays_bfloat16(function):
    assert function(gaussian(*SHAPE).astype(jnp.bfloat16), 2, 2, 1, 1).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"window must be a positive integer, got 0"),
        ({"padding": -1}, r"padding must be a non-negative integer, got -1"),
        ({"window": 3, "dilation": 4}, r"got window=3 with dilation=4, which covers 9 positions, for a map of 7 by 6"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        max_vector_pool(gaussian(*SHAPE), **arguments)
