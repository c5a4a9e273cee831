"""Properties that every registered estimator has: at any magnitude and dtype, under transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.errors import UserError
from vqjax.estimators import (
    ESTIMATORS,
    chooses_codes,
    clip_norm_ratio,
    diveq,
    diveq_detached,
    get_estimator,
    gumbel_softmax,
    keyword_names,
    noise_substitution,
    rotation,
)
from vqjax.functional import nearest_codes

TOKENS, CODES, DIM = 6, 4, 3
KEY = jax.random.key(4)
NOISY = {"diveq", "space_filling_diveq", "noise_substitution"}
BF16, F32 = jnp.bfloat16, jnp.float32
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


@pytest.mark.full
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


@pytest.mark.parametrize("estimator", [diveq, diveq_detached, noise_substitution])
def test_a_vector_on_its_code_is_straight_through(estimator):
    value, to_z, to_codes = value_and_gradients(estimator.__name__, CODEBOOK[INDICES], CODEBOOK)
    np.testing.assert_array_equal(value, CODEBOOK[INDICES])
    np.testing.assert_array_equal(to_z, G)
    assert float(jnp.max(jnp.abs(to_codes))) == 0


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


def test_keyword_names_see_through_partial_and_clipping():
    partial = functools.partial(diveq, variance=1e-2)
    assert "key" in keyword_names(partial)
    assert keyword_names(clip_norm_ratio(rotation, 1.0)) == keyword_names(rotation)
    assert chooses_codes(functools.partial(gumbel_softmax, temperature=0.5))


def test_an_unknown_name_is_answered_with_the_known_ones():
    message = r"estimator must be the name of one, or a callable.*, got 'rotations'; did you mean 'rotation'\?"
    with pytest.raises(UserError, match=message):
        get_estimator("rotations")
