"""Estimators that draw noise, reach the codes, or look at the other tokens: closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vqjax.errors import UserError
from vqjax.estimators import (
    ESTIMATORS,
    chooses_codes,
    clip_norm_ratio,
    diveq,
    diveq_detached,
    dynamic_straight_through,
    exact_gradient,
    gumbel_softmax,
    hessian_gradient,
    keyword_names,
    noise_substitution,
    rotation,
    space_filling_diveq,
)
from vqjax.functional import nearest_codes, norm_ratio

TOKENS, CODES, DIM = 12, 5, 3
KEY = jax.random.key(2)


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Z, Q, G = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1), gaussian(TOKENS, DIM, seed=2)
CODEBOOK = gaussian(CODES, DIM, seed=3)


def pulled_back(function, *primals):
    value, pull = jax.vjp(function, *primals)
    return value, pull(G)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_diveq_is_its_formula_in_value_and_gradient():
    variance = 5e-3
    value, (to_z, to_q) = pulled_back(lambda z, q: diveq(z, q, key=KEY, variance=variance), Z, Q)
    noise = np.asarray(jax.random.normal(KEY, Z.shape), np.float64)
    difference = np.asarray(Q - Z, np.float64)
    direction = unit(difference + np.sqrt(variance) * noise)
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    np.testing.assert_allclose(value, Z + length * direction, rtol=1e-5, atol=1e-6)
    along = np.sum(direction * np.asarray(G), -1, keepdims=True) * unit(difference)
    np.testing.assert_allclose(to_q, along, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_z, G - along, rtol=1e-4, atol=1e-5)


def test_diveq_without_noise_is_the_detached_form_whose_value_is_exact():
    value, (to_z, to_q) = pulled_back(diveq_detached, Z, Q)
    np.testing.assert_array_equal(value, Q)
    _, (same_z, same_q) = pulled_back(lambda z, q: diveq(z, q, key=KEY, variance=0.0), Z, Q)
    np.testing.assert_allclose(to_z, same_z, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_q, same_q, rtol=1e-6, atol=1e-6)


def test_noise_substitution_keeps_the_error_and_reaches_the_codes_through_its_length():
    value, (to_z, to_q) = pulled_back(lambda z, q: noise_substitution(z, q, key=KEY), Z, Q)
    error = np.linalg.norm(np.asarray(Z - Q), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(value - Z), axis=-1), error, rtol=1e-5)
    noise = unit(np.asarray(jax.random.normal(KEY, Z.shape), np.float64))
    along = np.sum(noise * np.asarray(G), -1, keepdims=True) * unit(np.asarray(Z - Q, np.float64))
    np.testing.assert_allclose(to_z, G + along, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_q, -along, rtol=1e-4, atol=1e-5)


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


def test_dynamic_straight_through_trusts_the_closest_token_of_each_code():
    indices = nearest_codes(Z, CODEBOOK)
    q = CODEBOOK[indices]
    mask = jnp.arange(TOKENS) % 3 != 0
    estimate = functools.partial(dynamic_straight_through, indices=indices, num_codes=CODES, mask=mask)
    value, (to_z, to_q) = pulled_back(lambda z, q: estimate(z, q), Z, q)
    np.testing.assert_array_equal(value, q)
    apart = np.sum(np.square(np.asarray(Z - q, np.float64)), -1)
    for token in np.flatnonzero(mask):
        rivals = apart[np.asarray(mask) & (np.asarray(indices) == int(indices[token]))]
        np.testing.assert_allclose(to_z[token], G[token] * rivals.min() / apart[token], rtol=1e-4)
    assert float(jnp.max(jnp.abs(to_q))) == 0


def test_dynamic_straight_through_compares_tokens_of_all_devices():
    z, indices = gaussian(16, DIM), jnp.arange(16) % 2
    q = CODEBOOK[indices]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(z, q, indices, axis_name=None):
        estimate = functools.partial(dynamic_straight_through, indices=indices, num_codes=2, axis_name=axis_name)
        return jax.grad(lambda z: jnp.sum(estimate(z, q)))(z)

    split = functools.partial(gradient, axis_name="data")
    mapped = jax.shard_map(split, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(mapped(z, q, indices), gradient(z, q, indices), rtol=1e-6)


@pytest.mark.parametrize("name", ["rotation", "rotation_normalized", "reflection"])
def test_the_guard_bounds_the_factor_and_nothing_else(name):
    z = Z * jnp.logspace(-3, 1, TOKENS)[:, None]
    value, (to_z,) = pulled_back(lambda z: clip_norm_ratio(name, 2.0)(z, Q), z)
    np.testing.assert_array_equal(value, Q)
    _, (unbounded,) = pulled_back(lambda z: ESTIMATORS[name](z, Q), z)
    factor = np.minimum(1, 2.0 / np.asarray(norm_ratio(z, Q)))
    assert factor.min() < 0.1
    np.testing.assert_allclose(to_z, factor * unbounded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "max_ratio", "message"),
    [
        ("straight_through", 1.0, r"estimator must scale gradients by \|q\|/\|z\|, got 'straight_through'"),
        ("rotation", 0.0, "max_ratio must be a finite number above 0, got 0.0"),
        ("rotation", float("inf"), "max_ratio must be a finite number above 0, got inf"),
        ("rotatoin", 1.0, "estimator must be one of straight_through, .*, got 'rotatoin'"),
    ],
)
def test_the_guard_refuses_what_it_cannot_bound(estimator, max_ratio, message):
    with pytest.raises(UserError, match=message):
        clip_norm_ratio(estimator, max_ratio)


def decoder_loss(params, vectors):
    hidden = jnp.tanh(vectors @ params["kernel"])
    return jnp.sum(jnp.square(hidden)) + jnp.sum(vectors**3), hidden.shape


def test_exact_and_hessian_gradients_are_those_of_the_decoder():
    params = {"kernel": gaussian(DIM, 4, seed=5)}
    loss = lambda params, vectors: decoder_loss(params, vectors)[0]  # noqa: E731
    of_params, of_vectors = jax.grad(loss, argnums=(0, 1))(params, Q)
    hessian = jax.hessian(loss, argnums=1)(params, Q)
    expected = {
        exact_gradient: jax.grad(loss, argnums=1)(params, Z),
        hessian_gradient: of_vectors + jnp.einsum("nidj,dj->ni", hessian.transpose(0, 1, 2, 3), Z - Q),
    }
    for route, to_z in expected.items():
        run = lambda params, z, q, route=route: route(decoder_loss, params, z, q)  # noqa: E731
        (value, aux), gradients = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(params, Z, Q)
        np.testing.assert_allclose(value, loss(params, Q), rtol=1e-6)
        assert aux == (TOKENS, 4)
        np.testing.assert_allclose(gradients[0]["kernel"], of_params["kernel"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradients[1], to_z, rtol=1e-4, atol=1e-4)
        assert float(jnp.max(jnp.abs(gradients[2]))) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_hostile_vectors_keep_every_gradient_finite(name):
    rows = [[0.0, 0, 0], [1, 2, 3], [1, 2, 3], [-1, -2, -3], [1e-20, 0, 0], [1e15, 0, 1], [1, 0, 0], [0, 0, 0]]
    z = jnp.array(rows, jnp.float32)
    codes = jnp.array([[1, 2, 3], [0, 0, 0], [1e-20, 0, 0], [1e15, 0, 0.5]], jnp.float32)
    estimator = ESTIMATORS[name]
    indices = nearest_codes(z, codes)
    context = {"key": KEY, "indices": indices, "num_codes": 4, "mask": None, "axis_name": None}
    context = {k: v for k, v in context.items() if k in keyword_names(estimator)}

    def loss(z, codes):
        if chooses_codes(estimator):
            return jnp.sum(estimator(z, codes, **context)[0])
        return jnp.sum(estimator(z, codes[indices], **context))

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(z, codes)
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


def test_requirements_see_through_partial_and_guard():
    partial = functools.partial(diveq, variance=1e-2)
    assert "key" in keyword_names(partial)
    assert keyword_names(clip_norm_ratio(rotation, 1.0)) == keyword_names(rotation)
    assert chooses_codes(functools.partial(gumbel_softmax, temperature=0.5))
