"""Gumbel-softmax against the soft mixture, at any magnitude, and in chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import central_difference, gaussian
from vqjax.errors import UserError
from vqjax.estimators import gumbel_softmax
from vqjax.functional import chunks

pytestmark = pytest.mark.full

TOKENS, CODES, DIM = 12, 5, 3
KEY = jax.random.key(2)
Z, G = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=2)
CODEBOOK = gaussian(CODES, DIM, seed=3)
INDICES = jnp.arange(TOKENS) % CODES


def test_gumbel_softmax_has_the_gradient_of_the_soft_mixture():
    temperature = 0.7

    def soft(z, codes):
        keys = jax.random.split(KEY, TOKENS)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (CODES,)))(keys)
        logits = -jnp.sum(jnp.square(z[:, None] - codes[None]), -1) + noise
        return jax.nn.softmax(logits / temperature) @ codes, jnp.argmax(logits, -1)

    drawn = functools.partial(gumbel_softmax, key=KEY, temperature=temperature)
    (value, indices), pull = jax.vjp(lambda z, codes: drawn(z, codes), Z, CODEBOOK)
    (_, expected_indices), expected_pull = jax.vjp(soft, Z, CODEBOOK)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(value, CODEBOOK[indices])
    zero = np.zeros(TOKENS, jax.dtypes.float0)
    for gradient, expected in zip(pull((G, zero)), expected_pull((G, zero)), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_gumbel_softmax_draws_as_often_as_the_softmax_says():
    codes = jnp.array([[0.0], [1.0], [2.0]])
    _, indices = gumbel_softmax(jnp.zeros((20_000, 1)), codes, key=KEY, temperature=0.3)
    expected = np.exp([0.0, -1.0, -4.0]) / np.exp([0.0, -1.0, -4.0]).sum()
    np.testing.assert_allclose(np.bincount(indices, minlength=3) / 20_000, expected, atol=0.012)


def test_gumbel_softmax_draws_the_nearest_code_where_squares_overflow():
    codes = 1e25 * CODEBOOK
    near = codes[INDICES] + 1e22 * Z
    _, indices = gumbel_softmax(near, codes, key=KEY)
    np.testing.assert_array_equal(indices, INDICES)


def test_gumbel_softmax_has_the_finite_differences_of_the_soft_mixture():
    temperature, g = 0.6, np.asarray(G, np.float64)
    keys = jax.random.split(KEY, TOKENS)
    noise = np.asarray(jax.vmap(lambda key: jax.random.gumbel(key, (CODES,)))(keys), np.float64)

    def weighted_mixture(z, codes):
        logits = (noise - np.sum((z[:, None] - codes) ** 2, -1)) / temperature
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.sum(weights / weights.sum(-1, keepdims=True) @ codes * g)

    _, pull = jax.vjp(lambda *pair: gumbel_softmax(*pair, key=KEY, temperature=temperature)[0], Z, CODEBOOK)
    to_z, to_codes = pull(G)
    z64, codes64 = np.asarray(Z, np.float64), np.asarray(CODEBOOK, np.float64)
    of_z = central_difference(lambda z: weighted_mixture(z, codes64), z64)
    of_codes = central_difference(lambda codes: weighted_mixture(z64, codes), codes64)
    np.testing.assert_allclose(to_z, of_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(to_codes, of_codes, rtol=1e-3, atol=1e-4)


def gumbel_gradients(z, codes):
    run = lambda z, codes: jnp.sum(gumbel_softmax(z, codes, key=KEY)[0] * jnp.sin(z))  # noqa: E731
    return jax.grad(run, argnums=(0, 1))(z, codes)


def test_gumbel_softmax_is_the_same_in_chunks(monkeypatch):
    z = gaussian(50, DIM, seed=6)
    at_once = gumbel_gradients(z, CODEBOOK)
    # Seven tokens at a time: the last chunk is a rest of one.
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 7 * CODES)
    for chunked, whole in zip(gumbel_gradients(z, CODEBOOK), at_once, strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-5)


def test_gumbel_softmax_never_holds_a_matrix_of_all_tokens_and_codes(monkeypatch):
    shapes = [jax.ShapeDtypeStruct((size, DIM), jnp.float32) for size in (2**14, 2**8)]

    def temporary_bytes():
        lowered = jax.jit(lambda z, codes: gumbel_gradients(z, codes)).lower(*shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    matrix = 4 * 2**14 * 2**8
    assert temporary_bytes() > matrix
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2**16)
    assert temporary_bytes() < matrix / 2


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(UserError, match=r"temperature must be a finite number above 0, got 0\.0"):
        gumbel_softmax(Z, CODEBOOK, key=KEY, temperature=0.0)
