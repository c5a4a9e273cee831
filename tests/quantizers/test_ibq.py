"""IBQ: its gradient and losses beside the one-hot form of the paper, and the contract of every quantizer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import CODES, DIM, KEY, every_second, gaussian
from vqjax import UserError
from vqjax.estimators import index_backpropagation, largest_inner_product
from vqjax.functional import chunks
from vqjax.functional.regularizers import EntropyPenalty, Orthogonality, Region
from vqjax.quantizers import IBQ

pytestmark = pytest.mark.full

SHAPE = (4, 8)  # of the tokens, in nearly every test: one compilation each
run = functools.partial(jax.jit, static_argnames="ibq")


@pytest.fixture
def small_parts(monkeypatch):
    """Five parts of seven tokens, the last ones of which are padding."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 7 * CODES)


@run
def apply(ibq, variables, z, mask=None):
    return ibq.apply(variables, z, mask)


@run
def encode(ibq, variables, z, mask=None):
    return ibq.apply(variables, z, mask, method="encode")


def variables_of(codes):
    return {"params": {"codes": codes}}


def one_hot_form(z, codes, temperature=1.0):
    """Eq. 6 of the paper as it is written, on [tokens, codes] arrays."""
    logits = jnp.matmul(z, codes.T, precision="highest")
    soft = jax.nn.softmax(logits / temperature)
    hard = jax.nn.one_hot(jnp.argmax(logits, axis=-1), codes.shape[0])
    return jnp.matmul(hard + soft - jax.lax.stop_gradient(soft), codes, precision="highest"), hard, logits


def losses_of_the_authors(z, codes):
    quantized, hard, _ = one_hot_form(z, codes)
    plain, constant = jnp.matmul(hard, codes, precision="highest"), jax.lax.stop_gradient
    squares = (quantized - z) ** 2, (constant(plain) - z) ** 2, 0.25 * (plain - constant(z)) ** 2
    return sum(jnp.mean(x) for x in squares)


def entropy_loss_of_the_authors(z, codes, temperature=0.01):
    logits = one_hot_form(z, codes)[2] / temperature
    soft, log_soft = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    mean = jnp.mean(soft.reshape(-1, codes.shape[0]), axis=0)
    return -jnp.mean(jnp.sum(soft * log_soft, axis=-1)) + jnp.sum(mean * jnp.log(mean + 1e-30))


def test_the_gradient_is_that_of_the_one_hot_form(small_parts):
    z, codes, g = gaussian(*SHAPE, DIM), gaussian(CODES, DIM, seed=1), gaussian(*SHAPE, DIM, seed=2)
    ours = lambda z, codes: index_backpropagation(z, codes, temperature=0.5)[0]  # noqa: E731
    value, pull = jax.vjp(ours, z, codes)
    _, expected_pull = jax.vjp(lambda z, codes: one_hot_form(z, codes, 0.5)[0], z, codes)
    chex.assert_trees_all_close(pull(g), expected_pull(g), rtol=1e-4, atol=1e-5)
    # Forward mode has the same derivative.
    _, slope = jax.jvp(ours, (z, codes), (g, codes))
    _, expected = jax.jvp(lambda z, codes: one_hot_form(z, codes, 0.5)[0], (z, codes), (g, codes))
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)
    assert {tuple(row) for row in np.asarray(value).reshape(-1, DIM)} <= {tuple(row) for row in np.asarray(codes)}


def test_one_token_moves_every_code_and_parts_change_nothing(monkeypatch):
    z, codes = gaussian(1, DIM), gaussian(CODES, DIM, seed=1)
    slope = jax.grad(lambda c: jnp.sum(index_backpropagation(z, c)[0] ** 2))(codes)
    assert bool(jnp.all(jnp.any(slope != 0, axis=-1)))
    whole = largest_inner_product(gaussian(*SHAPE, DIM), codes)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", CODES)
    np.testing.assert_array_equal(largest_inner_product(gaussian(*SHAPE, DIM), codes), whole)


def test_the_loss_is_that_of_the_authors_code():
    z, codes = gaussian(*SHAPE, DIM), gaussian(CODES, DIM, seed=1)
    ibq = IBQ(CODES, regularizers=(EntropyPenalty(0.05),))

    def ours(z, codes):
        return ibq.apply(variables_of(codes), z).loss

    def theirs(z, codes):
        return losses_of_the_authors(z, codes) + 0.05 * entropy_loss_of_the_authors(z, codes)

    actual, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(z, codes) for f in (ours, theirs))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_each_term_has_its_own_weight_and_gradient():
    z, codes = gaussian(*SHAPE, DIM), gaussian(CODES, DIM, seed=1)
    names = ["quantization_weight", "commitment_weight", "codebook_weight"]

    def slopes(name):
        ibq = IBQ(CODES, **({n: 0.0 for n in names} | {name: 2.0}))
        (loss, out), of = jax.jit(
            jax.value_and_grad(
                lambda z, c: (lambda out: (out.loss, out))(ibq.apply(variables_of(c), z)), (0, 1), has_aux=True
            )
        )(z, codes)
        np.testing.assert_allclose(loss, 2 * out.metrics["quantization_error"], rtol=1e-6)
        return of

    of_z, of_codes = slopes("commitment_weight")
    assert np.any(of_z)
    assert not np.any(of_codes)
    of_z, of_codes = slopes("codebook_weight")
    assert not np.any(of_z)
    chosen = np.unique(apply(IBQ(CODES), variables_of(codes), z).indices)
    assert set(np.flatnonzero(np.any(of_codes, axis=-1))) == set(chosen) != set(range(CODES))
    assert np.all(np.any(slopes("quantization_weight")[1], axis=-1))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    masked=st.booleans(),
)
def test_decoded_indices_are_the_output(seed, scale, dtype, masked):
    z = (scale * gaussian(*SHAPE, DIM, seed=seed)).astype(dtype)
    mask = every_second(SHAPE) if masked else jnp.ones(SHAPE, bool)
    ibq, variables = IBQ(CODES), variables_of(gaussian(CODES, DIM, seed=seed + 1))
    out, indices = apply(ibq, variables, z, mask), encode(ibq, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    decoded = ibq.apply(variables, indices, method="decode")
    assert (decoded.dtype, out.quantized.dtype) == (jnp.float32, dtype)
    np.testing.assert_array_equal(decoded.astype(dtype), out.quantized)
    assert np.all((np.asarray(indices) == -1) == ~np.asarray(mask))


def test_masked_tokens_take_no_part():
    z, mask, codes = gaussian(*SHAPE, DIM), every_second(SHAPE), gaussian(CODES, DIM, seed=1)
    ibq = IBQ(CODES, regularizers=(Orthogonality(0.1, active_only=True),))

    @jax.jit
    def step(z, mask):
        def loss(z, codes):
            out = ibq.apply(variables_of(codes), z, mask)
            return out.loss + jnp.sum(out.quantized**2), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(z, codes)

    (of_z, of_codes), out = step(jnp.where(mask[..., None], z, jnp.nan), mask)
    (some_of_z, some_of_codes), some = step(z[mask], jnp.ones(mask.sum(), bool))
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
    close((of_codes, of_z[mask], out.loss, out.metrics), (some_of_codes, some_of_z, some.loss, some.metrics))
    assert not np.any(of_z[~mask])
    assert not np.any(out.quantized[~mask])
    (of_z, of_codes), out = step(z, jnp.zeros_like(mask))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((of_z, of_codes, out)))


@pytest.mark.parametrize("mapped", [False, True])
def test_eight_devices_are_one(mapped, small_parts):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    regularizers = (EntropyPenalty(0.1, 1.0), Orthogonality(0.1, active_only=True), Region(1.0))
    z, codes = gaussian(32, DIM), gaussian(CODES, DIM, seed=1)
    mask = jnp.arange(32) > 5  # the first device holds nothing

    def step(codes, z, mask, axis_name=None):
        average = (lambda x: x) if axis_name is None else (lambda x: jax.lax.pmean(x, axis_name))
        ibq = IBQ(CODES, axis_name=axis_name, regularizers=regularizers)

        def loss(codes, z):
            out = ibq.apply(variables_of(codes), z, mask)
            # A task's mean over tokens, of which the weights differ.
            task = jnp.mean(out.quantized * jnp.arange(1.0, DIM + 1)[None])
            return average(out.loss + task), out

        (value, out), slopes = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(codes, z)
        return (value, average(out.metrics), slopes[0]), (out.indices, slopes[1])

    expected = jax.jit(step)(codes, z, mask)
    if mapped:
        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": (P(), P("data"))}
        actual = jax.jit(jax.shard_map(functools.partial(step, axis_name="data"), mesh=mesh, **specs))(codes, z, mask)
    else:
        whole, split = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
        actual = jax.jit(step)(*jax.device_put((codes, z, mask), (whole, split, split)))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_a_large_codebook_holds_no_tokens_times_codes():
    tokens, codes, dim = 2**16, 2**18, 8  # 64 GiB in float32, were they all there

    def loss(codes, z):
        out = IBQ(2**18, regularizers=(EntropyPenalty(0.05),)).apply(variables_of(codes), z)
        return out.loss + jnp.mean(out.quantized**2)

    shapes = jax.ShapeDtypeStruct((codes, dim), jnp.float32), jax.ShapeDtypeStruct((tokens, dim), jnp.float32)
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**28


def test_a_large_common_part_of_the_codes_costs_no_digits():
    # Products of 1e6 hide differences of 1e-2 in float32.
    z, codes = gaussian(*SHAPE, DIM), np.asarray(gaussian(CODES, DIM, seed=1)).astype(np.float64)
    shifted = jnp.asarray(np.round(codes * 64) / 64 + 2.0**16, jnp.float32)
    expected = np.argmax(np.asarray(z, np.float64) @ np.asarray(shifted, np.float64).T, axis=-1)
    np.testing.assert_array_equal(largest_inner_product(z, shifted), expected)


def test_init_and_invalid_indices():
    ibq = IBQ(CODES)
    variables = ibq.init(KEY, gaussian(*SHAPE, DIM).astype(jnp.bfloat16))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == variables_of(((CODES, DIM), jnp.float32))
    decoded = ibq.apply(variables, jnp.array([-1, 0, CODES, -2], jnp.int8), method="decode")
    assert np.asarray(jnp.isnan(decoded).all(axis=-1)).tolist() == [False, False, True, True]
    assert not np.any(decoded[0])


def test_regularizers_of_one_name_add_up():
    """Bug: two of a kind were one too few for their weights."""
    z, variables = gaussian(*SHAPE, DIM), variables_of(gaussian(CODES, DIM))
    losses = [
        apply(IBQ(CODES, regularizers=tuple(map(EntropyPenalty, weights))), variables, z).loss
        for weights in ((), (0.5,), (0.5, 0.5))
    ]
    np.testing.assert_allclose(losses[2] - losses[0], 2 * (losses[1] - losses[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 2**31}, r"num_codes must be an integer in \[1, 2147483647\], got 2147483648"),
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, got 0.0"),
        ({"commitment_weight": -1.0}, r"commitment_weight must be a finite number of at least 0, got -1.0"),
        ({"regularizers": 0.1}, r"regularizers must be a tuple of regularizers such as .*, got 0.1"),
        ({"codebook_init": "gaussian"}, r"codebook_init must be an initializer .*, got 'gaussian'"),
    ],
)
def test_mistakes_are_named(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        IBQ(**({"num_codes": CODES} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    ibq, variables = IBQ(CODES), variables_of(gaussian(CODES, DIM))
    with pytest.raises(UserError, match=r"must hold codes of shape \(12, 5\), got codes of shape \(12, 4\)"):
        ibq.apply(variables, gaussian(2, 5))
    with pytest.raises(UserError, match=r"must hold codes of shape .*, got no codes"):
        ibq.apply({}, gaussian(2, 4))
    with pytest.raises(UserError, match=r"indices must be an array of integers, .* got float32"):
        ibq.apply(variables, jnp.ones(2), method="decode")
