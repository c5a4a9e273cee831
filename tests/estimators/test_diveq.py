"""DiVeQ, space-filling DiVeQ and noise substitution against closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import central_difference, gaussian, pulled_back, unit
from vqjax.errors import UserError
from vqjax.estimators import diveq, diveq_detached, noise_substitution, space_filling_diveq
from vqjax.functional import nearest_codes

TOKENS, CODES, DIM = 12, 5, 3
KEY = jax.random.key(2)
Z, Q, G = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1), gaussian(TOKENS, DIM, seed=2)
CODEBOOK = gaussian(CODES, DIM, seed=3)


def test_diveq_is_its_formula_in_value_and_gradient():
    variance = 5e-3
    value, (to_z, to_q) = pulled_back(lambda z, q: diveq(z, q, key=KEY, variance=variance), G, Z, Q)
    noise = np.asarray(jax.random.normal(KEY, Z.shape), np.float64)
    difference = np.asarray(Q - Z, np.float64)
    direction = unit(difference + np.sqrt(variance) * noise)
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    np.testing.assert_allclose(value, Z + length * direction, rtol=1e-5, atol=1e-6)
    along = np.sum(direction * np.asarray(G), -1, keepdims=True) * unit(difference)
    np.testing.assert_allclose(to_q, along, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_z, G - along, rtol=1e-4, atol=1e-5)


def test_diveq_without_noise_is_the_detached_form_whose_value_is_exact():
    value, (to_z, to_q) = pulled_back(diveq_detached, G, Z, Q)
    np.testing.assert_array_equal(value, Q)
    _, (same_z, same_q) = pulled_back(lambda z, q: diveq(z, q, key=KEY, variance=0.0), G, Z, Q)
    np.testing.assert_allclose(to_z, same_z, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_q, same_q, rtol=1e-6, atol=1e-6)


def test_noise_substitution_keeps_the_error_and_reaches_the_codes_through_its_length():
    value, (to_z, to_q) = pulled_back(lambda z, q: noise_substitution(z, q, key=KEY), G, Z, Q)
    error = np.linalg.norm(np.asarray(Z - Q), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(value - Z), axis=-1), error, rtol=1e-5)
    noise = unit(np.asarray(jax.random.normal(KEY, Z.shape), np.float64))
    along = np.sum(noise * np.asarray(G), -1, keepdims=True) * unit(np.asarray(Z - Q, np.float64))
    np.testing.assert_allclose(to_z, G + along, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_q, -along, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_space_filling_diveq_ends_on_the_nearest_of_the_points_it_drew():
    value, indices = space_filling_diveq(Z, CODEBOOK, key=KEY, variance=0.0)
    along = np.asarray(jax.random.uniform(jax.random.split(KEY, 3)[0], (CODES - 1, 1)))
    points = (1 - along) * CODEBOOK[:-1] + along * CODEBOOK[1:]
    line = np.asarray(nearest_codes(Z, jnp.asarray(points)))
    np.testing.assert_allclose(value, points[line], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(indices, np.where(along[line, 0] < 0.5, line, line + 1))
    gradient = jax.grad(lambda codes: jnp.sum(space_filling_diveq(Z, codes, key=KEY)[0] * G))(CODEBOOK)
    reached = np.unique(np.concatenate([line, line + 1]))
    assert (np.abs(np.asarray(gradient)).sum(-1) > 0).nonzero()[0].tolist() == reached.tolist()


def test_space_filling_diveq_has_the_gradient_of_lengths_along_constant_directions():
    variance, g = 5e-3, np.asarray(G, np.float64)
    choice, *noise_keys = jax.random.split(KEY, 3)
    share = np.asarray(jax.random.uniform(choice, (CODES - 1, 1)), np.float64)
    points = (1 - share) * CODEBOOK[:-1] + share * CODEBOOK[1:]
    line = np.asarray(nearest_codes(Z, jnp.asarray(points, jnp.float32)))
    weights = (1 - share)[line], share[line]
    z64, codes64 = np.asarray(Z, np.float64), np.asarray(CODEBOOK, np.float64)
    noises = [np.sqrt(variance) * np.asarray(jax.random.normal(key, Z.shape)) for key in noise_keys]
    directions = [unit(codes64[line + end] - z64 + noises[end]) for end in (0, 1)]

    def quantized(z, codes):
        lengths = [np.linalg.norm(codes[line + end] - z, axis=-1, keepdims=True) for end in (0, 1)]
        return z + sum(w * n * d for w, n, d in zip(weights, lengths, directions, strict=True))

    run = functools.partial(space_filling_diveq, key=KEY, variance=variance)
    value, pull = jax.vjp(lambda z, codes: run(z, codes)[0], Z, CODEBOOK)
    to_z, to_codes = pull(G)
    np.testing.assert_allclose(value, quantized(z64, codes64), rtol=1e-4, atol=1e-5)
    of_z = central_difference(lambda z: np.sum(quantized(z, codes64) * g), z64)
    of_codes = central_difference(lambda codes: np.sum(quantized(z64, codes) * g), codes64)
    np.testing.assert_allclose(to_z, of_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(to_codes, of_codes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: diveq(Z, Z, key=KEY, variance=-1.0), "variance must be a finite number of at least 0, got -1.0"),
        (lambda: space_filling_diveq(Z, CODEBOOK, key=KEY, variance=float("nan")), "variance must be .*, got nan"),
        (lambda: space_filling_diveq(Z, CODEBOOK[:1], key=KEY), "num_codes must be at least 2 .*, got 1"),
    ],
)
def test_settings_that_would_give_nan_are_refused(run, message):
    with pytest.raises(UserError, match=message):
        run()
