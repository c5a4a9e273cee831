"""BinaryMapper: its distribution, its gradient, its loss, masks, devices, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import KEY, gaussian
from vqjax.errors import UserError
from vqjax.functional.binary import product_distribution
from vqjax.quantizers.binary import BinaryMapper

pytestmark = pytest.mark.full

TOKENS, BITS = 16, 4
MAPPER = BinaryMapper(BITS)
COTANGENT = gaussian(2**BITS, seed=9)
SHAPES = [((TOKENS, BITS), jnp.float32), ((2, 4, 2, BITS), jnp.bfloat16)]
examples = settings(max_examples=30)


# Compiling takes most of the time of these tests.


@functools.partial(jax.jit, static_argnames=("module", "train"))
def run(module, logits, mask=None, key=KEY, *, train=True):
    def loss(logits):
        out = module.apply({}, logits, mask, train=train, rngs={"quantizer": key})
        quantized = out.quantized.astype(jnp.float32)
        return out.loss + jnp.sum(quantized * jnp.broadcast_to(COTANGENT, quantized.shape)), out

    gradient, out = jax.grad(loss, has_aux=True)(logits)
    return out, gradient


@jax.jit
def round_trip(logits):
    indices = MAPPER.apply({}, logits, method="encode")
    return indices, MAPPER.apply({}, indices, method="decode")


def distribution(logits):
    logits = np.asarray(logits, np.float64)[..., None, :]
    codes = np.arange(2**BITS)[:, None] >> np.arange(BITS) & 1
    return np.prod(1 / (1 + np.exp(np.where(codes == 1, -logits, logits))), axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_follow_the_product_distribution(temperature):
    logits, number = gaussian(BITS), 2**16
    out, _ = run(BinaryMapper(BITS, temperature=temperature), jnp.broadcast_to(logits, (number, BITS)))
    expected = number * distribution(logits / temperature)
    found = np.bincount(out.indices, minlength=2**BITS)
    # Chi-squared with 15 degrees of freedom: the mean is 15, and a fair draw exceeds 44 once in ten thousand.
    assert np.sum((found - expected) ** 2 / expected) < 44
    # Each statistic of a pair of bits is within five standard deviations too.
    bits = np.asarray(out.indices)[:, None] >> np.arange(BITS) & 1
    assert np.max(np.abs(np.corrcoef(bits.T) - np.eye(BITS))) < 5 / np.sqrt(number)


def test_what_is_drawn_depends_on_the_key_alone():
    logits = gaussian(TOKENS, BITS)
    first, again, other = (run(MAPPER, logits, key=jax.random.key(seed))[0].indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    likelier, _ = run(MAPPER, logits, train=False, key=jax.random.key(0))
    np.testing.assert_array_equal(likelier.indices, run(MAPPER, logits, train=False)[0].indices)


def test_the_product_distribution_is_that_of_the_definition():
    logits = gaussian(TOKENS, BITS)
    np.testing.assert_allclose(jax.jit(product_distribution)(logits), distribution(logits), rtol=1e-5)


def test_there_are_no_variables_and_init_needs_no_draws():
    assert not jax.eval_shape(MAPPER.init, KEY, jnp.zeros((2, BITS)))
    assert (MAPPER.num_codes, MAPPER.num_codebooks) == (2**BITS, 1)


def test_the_first_bit_is_the_lowest_and_evaluation_takes_the_likelier_bits():
    out, _ = run(MAPPER, jnp.array([[9.0, -9.0, 9.0, -0.1]]), train=False)
    assert out.indices.tolist() == [5]


def test_a_low_temperature_decides_the_draw_and_nothing_else():
    logits = gaussian(TOKENS, BITS)
    cold, gradient = run(BinaryMapper(BITS, temperature=1e-3), logits)
    likelier, expected = run(MAPPER, logits, train=False)
    np.testing.assert_array_equal(cold.indices, likelier.indices)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_the_gradient_is_that_of_the_distribution_whatever_was_drawn():
    logits = gaussian(TOKENS, BITS)
    free = BinaryMapper(BITS, free_nats=100.0)
    gradients = [run(free, logits, key=jax.random.key(seed))[1] for seed in range(2)]
    np.testing.assert_array_equal(*gradients)
    direction = np.asarray(gaussian(TOKENS, BITS, seed=2), np.float64)
    up, down = (distribution(np.asarray(logits, np.float64) + s * direction) for s in (1e-5, -1e-5))
    slope = np.sum((up - down) * np.asarray(COTANGENT)) / 2e-5
    np.testing.assert_allclose(np.sum(np.asarray(gradients[0]) * direction), slope, rtol=1e-4)
    total = lambda x: jnp.sum(product_distribution(x) @ COTANGENT)  # noqa: E731
    exact = jax.jit(jax.grad(total))(logits)
    np.testing.assert_allclose(gradients[0], exact, rtol=1e-5, atol=1e-6)


def divergence(logits):
    p = distribution(logits)
    return np.log(2**BITS) + np.sum(p * np.log(p), axis=-1)


@pytest.mark.parametrize("free_nats", [0.0, np.log(2), 100.0])
def test_the_loss_is_the_divergence_beyond_the_free_nats(free_nats):
    logits, mapper = gaussian(TOKENS, BITS), BinaryMapper(BITS, free_nats=float(free_nats))
    loss, gradient = jax.jit(jax.value_and_grad(lambda z: mapper.apply({}, z, train=False).loss))(logits)
    beyond = lambda x: np.mean(np.maximum(divergence(x) - free_nats, 0))  # noqa: E731
    np.testing.assert_allclose(loss, beyond(logits), rtol=1e-5)
    np.testing.assert_allclose(run(mapper, logits)[0].metrics["kl"], np.mean(divergence(logits)), rtol=1e-5)
    direction = np.asarray(gaussian(TOKENS, BITS, seed=2), np.float64)
    up, down = (beyond(np.asarray(logits, np.float64) + s * direction) for s in (1e-5, -1e-5))
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), (up - down) / 2e-5, rtol=1e-4)


def test_fair_coins_diverge_by_nothing_and_decided_ones_by_all_bits():
    for logit, expected in ((0.0, 0.0), (1e4, BITS * np.log(2)), (-1e4, BITS * np.log(2))):
        out, gradient = run(MAPPER, jnp.full((TOKENS, BITS), logit))
        np.testing.assert_allclose(out.metrics["kl"], expected, atol=1e-6)
        np.testing.assert_allclose(out.loss, max(expected - np.log(2), 0), atol=1e-6)
        assert bool(jnp.all(jnp.isfinite(gradient)))


def test_log_probabilities_are_those_of_the_distribution_and_of_no_token_zero():
    logits = jnp.broadcast_to(gaussian(BITS), (2**BITS + 3, BITS))
    indices = jnp.arange(-2, 2**BITS + 1)
    found = MAPPER.apply({}, logits, indices, method="log_prob")
    np.testing.assert_allclose(found[2:-1], np.log(distribution(gaussian(BITS))), rtol=1e-5)
    np.testing.assert_array_equal(found[jnp.array([0, 1, -1])], [np.nan, 0.0, np.nan])
    decoded = MAPPER.apply({}, indices, method="decode")
    assert bool(jnp.all(jnp.isnan(decoded[0]) & jnp.isnan(decoded[-1])))
    np.testing.assert_array_equal(decoded[1:-1], np.eye(2**BITS + 1)[:, 1:])


def test_the_gradient_of_log_probabilities_is_bits_minus_their_probabilities():
    logits, indices = gaussian(TOKENS, BITS), jnp.arange(TOKENS)
    total = lambda z: jnp.sum(MAPPER.apply({}, z, indices, method="log_prob"))  # noqa: E731
    gradient = jax.jit(jax.grad(total))(logits)
    bits = np.arange(TOKENS)[:, None] >> np.arange(BITS) & 1
    np.testing.assert_allclose(gradient, bits - 1 / (1 + np.exp(-np.asarray(logits, np.float64))), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16])
def test_token_files_hold_indices_of_any_integer_dtype(dtype):
    # 2**8 is no uint8, and -1 neither.
    mapper, logits, indices = BinaryMapper(8), jnp.zeros((3, 8)), jnp.array([0, 5, 127])
    narrow = indices.astype(dtype)
    np.testing.assert_array_equal(mapper.apply({}, narrow, method="decode"), mapper.apply({}, indices, method="decode"))
    np.testing.assert_allclose(
        mapper.apply({}, logits, narrow, method="log_prob"), np.full(3, -8 * np.log(2)), rtol=1e-6
    )


@examples
@given(
    shape_and_dtype=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    train=st.booleans(),
)
def test_the_output_is_one_hot(shape_and_dtype, seed, scale, train):
    shape, dtype = shape_and_dtype
    logits = (gaussian(*shape, seed=seed) * scale).astype(dtype)
    out, gradient = run(MAPPER, logits, train=train)
    indices, decoded = round_trip(logits)
    assert out.quantized.dtype == gradient.dtype == dtype
    assert out.indices.dtype == jnp.int32
    np.testing.assert_array_equal(out.quantized, jax.nn.one_hot(out.indices, 2**BITS, dtype=dtype))
    if not train:
        np.testing.assert_array_equal(out.indices, indices)
        np.testing.assert_array_equal(out.quantized, decoded.astype(dtype))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((out, gradient)))


@examples
@given(seed=st.integers(0, 2**16), rubbish=st.sampled_from([0.0, np.nan]))
def test_masked_tokens_are_as_if_they_were_not_there(seed, rubbish):
    logits, valid = gaussian(TOKENS, BITS, seed=seed), jnp.arange(TOKENS) % 2 == 0
    masked, gradient = run(MAPPER, jnp.where(valid[:, None], logits, rubbish), valid, train=False)
    alone, expected = run(MAPPER, logits[::2], train=False)
    np.testing.assert_array_equal(masked.quantized[::2], alone.quantized)
    assert not np.any(masked.quantized[1::2])
    assert bool(jnp.all(masked.indices[1::2] == -1))
    assert not np.any(gradient[1::2])
    np.testing.assert_allclose(gradient[::2], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked.loss, alone.loss, rtol=1e-5)
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(masked.metrics[name], value, rtol=1e-5)


def test_a_batch_without_valid_tokens_is_finite():
    out, gradient = run(MAPPER, gaussian(TOKENS, BITS), jnp.zeros(TOKENS, bool))
    assert float(out.loss) == 0
    assert not np.any(gradient)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out))


def test_eight_devices_draw_what_one_does():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    logits = gaussian(TOKENS, BITS)
    expected, expected_gradient = run(MAPPER, logits)
    out, gradient = run(MAPPER, jax.device_put(logits, NamedSharding(mesh, P("data"))))
    np.testing.assert_array_equal(out.indices, expected.indices)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_a_mapped_axis_has_the_loss_of_the_global_batch_and_draws_of_its_own():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = BinaryMapper(BITS, axis_name="data")
    mask = jnp.arange(TOKENS) >= 5
    specs = {"in_specs": (P("data"), P("data")), "out_specs": (P("data"), P())}

    def step(logits, mask):
        out = mapped.apply({}, logits, mask, train=True, rngs={"quantizer": KEY})
        return out.indices, jax.lax.pmean((out.loss, out.metrics["kl"]), "data")

    same = jnp.zeros((TOKENS, BITS)).at[:, 0].set(9.0)
    indices, (loss, kl) = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(same, mask)
    expected, _ = run(MAPPER, same, mask)
    np.testing.assert_allclose((loss, kl), (expected.loss, expected.metrics["kl"]), rtol=1e-5, atol=1e-6)
    assert len(set(indices[5:].tolist())) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 17}, r"bits must be an integer in \[1, 16\], got 17; the output has 2\*\*bits features"),
        ({"bits": 0}, r"bits must be .*, got 0"),
        ({"bits": 4.0}, r"bits must be .*, got 4.0"),
        ({"bits": True}, r"bits must be .*, got True"),
        ({"free_nats": -1.0}, r"free_nats must be a finite number of at least 0, got -1.0"),
        ({"free_nats": float("inf")}, r"free_nats must be .*, got inf"),
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, got 0.0"),
        ({"temperature": float("nan")}, r"temperature must be .*, got nan"),
        ({"temperature": "cold"}, r"temperature must be .*, got 'cold'"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        BinaryMapper(**({"bits": BITS} | arguments))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MAPPER.apply({}, jnp.zeros((2, 3)), train=False),
            r"z must be one logit for each of bits=4 .*, got \(2, 3\)",
        ),
        (lambda: MAPPER.apply({}, jnp.zeros((2, 3)), method="encode"), r"one logit for each of bits=4"),
        (
            lambda: MAPPER.apply({}, jnp.zeros((2, 3)), jnp.zeros(2, int), method="log_prob"),
            r"one logit for each of bits=4",
        ),
        (
            lambda: MAPPER.apply({}, jnp.zeros((2, BITS), int), train=False),
            r"z must be floating-point vectors, got int32",
        ),
        (
            lambda: MAPPER.apply({}, jnp.zeros((2, BITS)), jnp.ones(3, bool), train=False),
            r"mask must be bool\[2\], .*, got bool\[3\]",
        ),
        (lambda: MAPPER.apply({}, jnp.zeros((2, BITS)), train=True), r"draws random .*pass rngs=\{'quantizer': key\}"),
        (
            lambda: MAPPER.apply({}, jnp.zeros(2), method="decode"),
            r"indices must be an array of integers, .* got float32",
        ),
        (
            lambda: MAPPER.apply({}, jnp.zeros((2, BITS)), jnp.zeros(2), method="log_prob"),
            r"indices must be an array of integers",
        ),
    ],
)
def test_wrong_inputs_are_named(call, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        call()
