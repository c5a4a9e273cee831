"""Quantizer of the CIFAR-10 study against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from studies.reproduction.quantizer import FaithfulQuantizer

pytestmark = pytest.mark.full

TOKENS, CODES, DIM = 64, 8, 4
MODULE = FaithfulQuantizer(CODES, commitment_weight=0.5)


def tokens(seed=0):
    """Not negative, like what follows a ReLU."""
    return jnp.abs(jax.random.normal(jax.random.key(seed), (TOKENS, DIM)))


def started():
    return MODULE.init(jax.random.key(1), tokens())


def step(variables, z):
    def loss(params):
        output, changed = MODULE.apply(variables | {"params": params}, z, train=True, mutable=["codebook"])
        return output.loss, (output, changed)

    gradient, (output, changed) = jax.grad(loss, has_aux=True)(variables["params"])
    return output, changed, gradient


def codes_of(variables):
    return np.asarray(variables["params"]["codes"] + variables["codebook"]["offsets"])


def test_the_output_has_the_codes_direction_and_the_vectors_length():
    z = tokens()
    output, _, _ = step(started(), z)
    chosen = codes_of(started())[output.indices]
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    expected = length * chosen / np.linalg.norm(chosen, axis=-1, keepdims=True)
    np.testing.assert_allclose(output.quantized, expected, atol=1e-3)
    assert np.abs(output.quantized - chosen).max() > 0.1


def test_the_gradient_goes_straight_through():
    weights = jax.random.normal(jax.random.key(2), (TOKENS, DIM))
    with_losses = jax.grad(lambda z: jnp.sum(weights * MODULE.apply(started(), z).quantized))
    np.testing.assert_allclose(with_losses(tokens()), weights, atol=1e-6)


def test_averages_with_smoothing_overwrite_the_codes_and_the_optimizer_moves_them_after_that():
    variables, optimizer = started(), optax.adam(0.1)
    optimizer_state = optimizer.init(variables["params"])
    counts, sums = np.zeros(CODES), np.zeros((CODES, DIM))
    for seed in range(3):
        z = tokens(seed)
        output, changed, gradient = step(variables, z)
        assigned = np.eye(CODES)[output.indices]
        counts = 0.99 * counts + 0.01 * assigned.sum(0)
        sums = 0.99 * sums + 0.01 * assigned.T @ np.asarray(z)
        smoothed = (counts + 1e-5) / (counts.sum() + CODES * 1e-5) * counts.sum()
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        params = optax.apply_updates(variables["params"], updates)
        variables = {"params": params} | changed
        expected = sums / smoothed[:, None] + np.asarray(updates["codes"])
        np.testing.assert_allclose(codes_of(variables), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(np.asarray(updates["codes"])).max() > 0.01


def test_unused_codes_are_the_zero_vector_after_the_first_batch():
    output, changed, _ = step(started(), tokens())
    codes = codes_of(started() | changed)
    unused = np.setdiff1d(np.arange(CODES), output.indices)
    assert 0 < len(unused) < CODES
    np.testing.assert_allclose(codes[unused], 0, atol=1e-7)


def test_the_averages_move_in_evaluation_where_they_may():
    variables = started()
    _, changed = MODULE.apply(variables, tokens(), train=False, mutable=["codebook"])
    assert np.abs(changed["codebook"]["offsets"] - variables["codebook"]["offsets"]).max() > 0.01
    assert jnp.isfinite(MODULE.apply(variables, tokens()).loss)


def test_the_loss_is_codebook_plus_weighted_commitment_and_reaches_codes_and_vectors():
    output, _, gradient = step(started(), tokens())
    metrics = output.metrics
    np.testing.assert_allclose(metrics["codebook_loss"], metrics["commitment_loss"], rtol=1e-6)
    np.testing.assert_allclose(output.loss, 1.5 * metrics["codebook_loss"], rtol=1e-6)
    assert np.abs(gradient["codes"]).max() > 0


def test_tokens_carry_the_codes_alone():
    variables, z = started(), tokens()
    output = MODULE.apply(variables, z)
    decoded = MODULE.apply(variables, output.indices, method="decode")
    np.testing.assert_allclose(decoded, codes_of(variables)[output.indices], rtol=1e-6)
