"""The estimators at any magnitude and dtype, under transformations, and against float64 finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from vqjax.functional import chunks, nearest_codes

TOKENS, CODES, DIM = 6, 4, 3
KEY = jax.random.key(4)
NOISY = {"diveq", "space_filling_diveq", "noise_substitution"}
BF16, F32 = jnp.bfloat16, jnp.float32


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), F32)


Z, CODEBOOK, G = gaussian(TOKENS, DIM), gaussian(CODES, DIM, seed=1), gaussian(TOKENS, DIM, seed=2)
INDICES = jnp.arange(TOKENS) % CODES
names = pytest.mark.parametrize("name", ESTIMATORS)


def quantize(estimator, z, codes):
    """The estimator's vectors, whichever form it has, with every token's code given where it does not choose."""
    offered = {"key": KEY, "indices": INDICES, "num_codes": CODES, "mask": None, "axis_name": None}
    given = {name: value for name, value in offered.items() if name in keyword_names(estimator)}
    return estimator(z, codes, **given)[0] if chooses_codes(estimator) else estimator(z, codes[INDICES], **given)


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradients(name, z, codes):
    value, pull = jax.vjp(functools.partial(quantize, ESTIMATORS[name]), z, codes)
    return value, *pull(G.astype(value.dtype))


@names
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e20, 1e30])
def test_no_magnitude_makes_a_value_or_a_gradient_infinite(name, magnitude):
    for results in (
        value_and_gradients(name, Z * magnitude, CODEBOOK * magnitude),
        value_and_gradients(name, Z * magnitude, CODEBOOK),
    ):
        assert all(bool(jnp.all(jnp.isfinite(result))) for result in results)


@pytest.mark.parametrize("name", ["dynamic_straight_through", "diveq_detached", "noise_substitution"])
@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
def test_jacobians_without_a_unit_do_not_depend_on_it(name, magnitude):
    """Once a squared distance overflowed: no gradient at all, or an infinite value."""
    _, *scaled = value_and_gradients(name, Z * magnitude, CODEBOOK * magnitude)
    for gradient, expected in zip(scaled, value_and_gradients(name, Z, CODEBOOK)[1:], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_gumbel_softmax_draws_the_nearest_code_where_squares_overflow():
    codes = 1e25 * CODEBOOK
    near = codes[INDICES] + 1e22 * Z
    _, indices = gumbel_softmax(near, codes, key=KEY)
    np.testing.assert_array_equal(indices, INDICES)


@names
@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32), (BF16, BF16)])
def test_half_precision_is_float32_inside_and_rounded_once(name, dtypes):
    """Once the noise of bfloat16 inputs was other noise, and float32 vectors changed the dtype of the codes."""
    z, codes = Z.astype(dtypes[0]), CODEBOOK.astype(dtypes[1])
    value, *gradients = value_and_gradients(name, z, codes)
    exact_value, *exact_gradients = value_and_gradients(name, z.astype(F32), codes.astype(F32))
    assert (value.dtype, gradients[0].dtype, gradients[1].dtype) == (codes.dtype, z.dtype, codes.dtype)
    np.testing.assert_array_equal(value, exact_value.astype(codes.dtype))
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        # The upstream gradient and the sums over the tokens of a code are in bfloat16 as well.
        np.testing.assert_allclose(gradient.astype(F32), exact, rtol=0.03, atol=0.03)


@names
def test_jit_scan_and_vmap_change_nothing(name):
    run = functools.partial(quantize, ESTIMATORS[name])
    gradient = jax.grad(lambda z, codes: jnp.sum(run(z, codes) * G), argnums=(0, 1))
    expected = gradient(Z, CODEBOOK)
    stacked = jnp.stack([Z, Z]), jnp.stack([CODEBOOK, CODEBOOK])
    _, scanned = jax.lax.scan(lambda carry, pair: (carry, gradient(*pair)), None, stacked)
    for several in (jax.vmap(gradient)(*stacked), scanned):
        for found, of_one in zip(several, expected, strict=True):
            np.testing.assert_allclose(found, jnp.stack([of_one, of_one]), rtol=1e-4, atol=1e-5)


@names
def test_the_value_is_a_code_bit_for_bit_unless_noise_is_added(name):
    value = value_and_gradients(name, 1e3 * Z, CODEBOOK)[0]
    is_code = np.any(np.all(np.asarray(value)[:, None] == np.asarray(CODEBOOK), axis=-1), axis=-1)
    assert is_code.all() != (name in NOISY)


def central_difference(function, x, step=1e-6):
    moves = [step * one.reshape(x.shape) for one in np.eye(x.size)]
    return np.reshape([(function(x + move) - function(x - move)) / (2 * step) for move in moves], x.shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_space_filling_diveq_has_the_gradient_of_lengths_along_constant_directions():
    variance, g = 5e-3, np.asarray(G, np.float64)
    choice, *noise_keys = jax.random.split(KEY, 3)
    share = np.asarray(jax.random.uniform(choice, (CODES - 1, 1)), np.float64)
    points = (1 - share) * CODEBOOK[:-1] + share * CODEBOOK[1:]
    line = np.asarray(nearest_codes(Z, jnp.asarray(points, F32)))
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


def allow_logits(monkeypatch, number):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", number)


def test_gumbel_softmax_is_the_same_in_chunks(monkeypatch):
    z = gaussian(50, DIM, seed=6)
    at_once = gumbel_gradients(z, CODEBOOK)
    # Seven tokens at a time: the last chunk is a rest of one.
    allow_logits(monkeypatch, 7 * CODES)
    for chunked, whole in zip(gumbel_gradients(z, CODEBOOK), at_once, strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-5)


def test_gumbel_softmax_never_holds_a_matrix_of_all_tokens_and_codes(monkeypatch):
    shapes = [jax.ShapeDtypeStruct((size, DIM), F32) for size in (2**14, 2**8)]

    def temporary_bytes():
        lowered = jax.jit(lambda z, codes: gumbel_gradients(z, codes)).lower(*shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    matrix = 4 * 2**14 * 2**8
    assert temporary_bytes() > matrix
    allow_logits(monkeypatch, 2**16)
    assert temporary_bytes() < matrix / 2


@pytest.mark.parametrize("estimator", [diveq, diveq_detached, noise_substitution])
def test_a_vector_on_its_code_is_straight_through(estimator):
    value, to_z, to_codes = value_and_gradients(estimator.__name__, CODEBOOK[INDICES], CODEBOOK)
    np.testing.assert_array_equal(value, CODEBOOK[INDICES])
    np.testing.assert_array_equal(to_z, G)
    assert float(jnp.max(jnp.abs(to_codes))) == 0


def test_dynamic_straight_through_ignores_whatever_a_masked_token_holds():
    z = Z.at[0].set(jnp.nan).at[1].set(jnp.inf).at[4].set(CODEBOOK[0])
    mask = jnp.array([False, False, True, True, False, True])
    estimate = functools.partial(dynamic_straight_through, indices=INDICES, num_codes=CODES)
    gradient = jax.grad(lambda z, mask: jnp.sum(estimate(z, CODEBOOK[INDICES], mask=mask)))
    found = gradient(z, mask)
    assert bool(jnp.all(jnp.isfinite(found)))
    np.testing.assert_array_equal(found[jnp.array([2, 3, 5])], 1.0)


@pytest.mark.parametrize("estimator", [functools.partial(diveq, variance=1.0), gumbel_softmax, lambda z, codes: z])
def test_the_guard_sees_what_does_not_scale_through_a_partial(estimator):
    with pytest.raises(UserError, match="estimator must scale gradients"):
        clip_norm_ratio(estimator, 1.0)


def test_the_guard_leaves_pairs_without_a_ratio_alone():
    z, q = jnp.array([[1e-8, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    gradient = jax.grad(lambda z: jnp.sum(clip_norm_ratio(rotation, 1.0)(z, q)))(z)
    np.testing.assert_array_equal(gradient, jnp.ones_like(z))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: gumbel_softmax(Z, CODEBOOK, key=KEY, temperature=0.0),
            "temperature must be .* above 0, got 0.0",
        ),
        (lambda: diveq(Z, Z, key=KEY, variance=-1.0), "variance must be a finite number of at least 0, got -1.0"),
        (lambda: space_filling_diveq(Z, CODEBOOK, key=KEY, variance=float("nan")), "variance must be .*, got nan"),
        (lambda: space_filling_diveq(Z, CODEBOOK[:1], key=KEY), "num_codes must be at least 2 .*, got 1"),
    ],
)
def test_settings_that_would_give_nan_are_refused(run, message):
    with pytest.raises(UserError, match=message):
        run()


@pytest.mark.parametrize("route", [exact_gradient, hessian_gradient])
@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32)])
def test_decoder_gradients_take_any_dtypes_and_any_encoder(route, dtypes):
    """Once a loss that overflowed at the encoder's vectors made the value NaN as well."""
    loss = lambda scale, x: (jnp.sum(scale * x.astype(F32) ** 2), None)  # noqa: E731
    y, q = jnp.full((2, 2), 1e25, dtypes[0]), jnp.full((2, 2), 2.0, dtypes[1])
    (value, _), to_y = jax.value_and_grad(lambda y: route(loss, 1.0, y, q), has_aux=True)(y)
    assert (float(value), to_y.dtype) == (16.0, y.dtype)
    np.testing.assert_allclose(to_y.astype(F32), 2e25, rtol=1e-2)
