"""FSP and LatentQuantizer: the contract of every quantizer, their losses, and what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import KEY, every_second, gaussian
from vqjax.errors import UserError
from vqjax.functional.scalar import DISTRIBUTIONS, MOMENTS, Moments, moments_loss, unit_variance
from vqjax.quantizers.scalar import FSP, LatentQuantizer

pytestmark = pytest.mark.full

SHAPE, LEVELS = (2, 4, 4), (4, 3, 5, 2)
QUANTIZERS = {
    "tanh": FSP(LEVELS),
    "normal inverted": FSP(LEVELS, activation="normal", invert=True, moments="kurtosis"),
    "cauchy inverted": FSP(LEVELS, activation="cauchy", invert=True, moments=None),
    "laplace": FSP((4, 3), activation="laplace", invert=True, num_codebooks=2, quantize_rate=0.5),
    "projected": FSP((8, 5, 5), activation="sigmoid", moments="sigmoid"),
    "latent": LatentQuantizer(LEVELS),
    "latent projected": LatentQuantizer((3, 4), num_codebooks=3),
    "latent constant": LatentQuantizer((5, 4), num_codebooks=2, learn_values=False),
}
every = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
ALL = jnp.ones(SHAPE[:-1], bool)


@functools.cache
def variables_of(quantizer):
    return jax.jit(quantizer.init)({"params": KEY}, jnp.zeros(SHAPE))


@functools.partial(jax.jit, static_argnames="quantizer")
def run(quantizer, variables, z, mask):
    """Without training, and with it."""
    out = quantizer.apply(variables, z, mask, train=False)
    noisy = quantizer.apply(variables, z, mask, train=True, rngs={"quantizer": KEY})
    return out, noisy


@functools.partial(jax.jit, static_argnames="quantizer")
def encode_and_decode(quantizer, variables, z, mask):
    indices = quantizer.apply(variables, z, mask, method="encode")
    return indices, quantizer.apply(variables, indices, method="decode")


@every
@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e6]),
    mask=st.sampled_from([ALL, ~ALL, every_second(SHAPE[:-1])]),
)
def test_indices_decode_to_the_output_bit_for_bit(quantizer, seed, scale, mask):
    z, variables = jnp.where(mask[..., None], gaussian(*SHAPE, seed=seed) * scale, jnp.nan), variables_of(quantizer)
    out, noisy = run(quantizer, variables, z, mask)
    indices, vectors = encode_and_decode(quantizer, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(noisy.indices, indices)
    np.testing.assert_array_equal(vectors, out.quantized)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out.quantized, noisy.quantized)))
    assert scale > 100 or all(np.isfinite(x).all() for x in jax.tree.leaves((out, noisy)))
    assert (indices[~mask] == -1).all()
    assert not out.quantized[~mask].any()
    assert not noisy.quantized[~mask].any()
    assert ((indices[mask] >= 0) & (indices[mask] < quantizer.num_codes)).all()


@pytest.mark.parametrize("name", ["normal inverted", "latent"])
def test_masked_tokens_take_no_part(name):
    quantizer, mask = QUANTIZERS[name], every_second(SHAPE[:-1])
    z, variables = jnp.where(mask[..., None], gaussian(*SHAPE), jnp.nan), variables_of(quantizer)
    (out, _), alone = run(quantizer, variables, z, mask), quantizer.apply(variables, z[mask], train=False)
    np.testing.assert_array_equal(out.indices[mask], alone.indices)
    np.testing.assert_allclose(out.loss, alone.loss, rtol=1e-5)
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(out.metrics[name], value, rtol=1e-5, err_msg=name)
    gradient = jax.grad(lambda z: run(quantizer, variables, z, mask)[0].loss)(z)
    assert not gradient[~mask].any()
    assert gradient[mask].all()


@pytest.mark.parametrize("name", ["tanh", "latent"])
def test_lower_precision(name):
    quantizer, z = QUANTIZERS[name], gaussian(*SHAPE).astype(jnp.bfloat16)
    out, exact = (run(quantizer, variables_of(quantizer), x, ALL)[0] for x in (z, z.astype(jnp.float32)))
    assert out.quantized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.indices, exact.indices)
    np.testing.assert_array_equal(out.quantized, exact.quantized.astype(jnp.bfloat16))


@pytest.mark.parametrize("activation", DISTRIBUTIONS)
def test_inverses_undo_their_distributions(activation):
    cdf, inverse = DISTRIBUTIONS[activation]
    z = jnp.linspace(-3, 3, 31)
    np.testing.assert_allclose(inverse(cdf(z)), z, rtol=1e-4, atol=1e-5)
    slope = jax.vmap(jax.grad(cdf))(z)
    assert (slope > 0).all()  # of the Laplace distribution it is zero at zero in the peer
    np.testing.assert_allclose(cdf(jnp.array([-1e30, 0.0, 1e30])), [0, 0.5, 1], atol=1e-6)


def test_bins_are_used_alike_where_the_distribution_is_the_right_one():
    z = gaussian(4000, 1)
    indices = FSP((8,), activation="normal").apply({}, z, method="encode")
    counts = np.bincount(indices, minlength=8)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    quantized = FSP((8,), activation="normal").apply({}, z, train=False).quantized
    # Uniform bins of variance one, less the variance within a bin.
    assert abs(np.var(quantized) - (1 - 1 / 64)) < 0.05


@pytest.mark.parametrize("invert", [False, True])
def test_noise_stays_in_the_range_of_the_neighborhood(invert):
    quantizer = FSP((2, 10), quantize_rate=0.25, invert=invert)
    z = gaussian(4000, 2)
    code, noisy = (quantizer.apply({}, z, train=train, rngs={"quantizer": KEY}) for train in (False, True))
    z, code, noisy = (np.asarray(x) for x in (z, code.quantized, noisy.quantized))
    assert np.abs((noisy == code).mean(axis=0) - 0.25).max() < 0.04
    p = (np.tanh(z) + 1) / 2
    noisy_p = (np.tanh(noisy) + 1) / 2 if invert else noisy / np.sqrt(12) + 0.5
    moved = np.where(noisy == code, 0.0, noisy_p - p)
    assert (np.abs(moved) <= np.array([1 / 4, 1 / 20]) + 1e-5).all()
    assert (moved.max(axis=0) > np.array([1 / 4, 1 / 20]) * 0.95).all()
    assert noisy_p.min() > 0
    assert noisy_p.max() < 1
    with pytest.raises(UserError, match=r"quantize_rate=0\.25, below 1, draws random numbers"):
        quantizer.apply({}, jnp.asarray(z), train=True)


def test_without_noise_training_draws_nothing():
    quantizer, z = FSP((4, 3), quantize_rate=1.0), gaussian(5, 2)
    np.testing.assert_array_equal(
        quantizer.apply({}, z, train=True).quantized, quantizer.apply({}, z, train=False).quantized
    )


def test_gradients_are_those_of_infinitely_many_levels():
    z = gaussian(20, 2)

    def exact(z, activation):
        return unit_variance(DISTRIBUTIONS[activation].cdf(z))

    def gradient(function, *arguments):
        return np.asarray(jax.grad(lambda z: jnp.sum(function(z, *arguments)))(z))

    def quantized(z, **arguments):
        return FSP((4, 3), activation="sigmoid", **arguments).apply({}, z, train=False).quantized

    sigmoid = 1 / (1 + np.exp(-np.asarray(z)))
    np.testing.assert_allclose(gradient(quantized), np.sqrt(12) * sigmoid * (1 - sigmoid), rtol=1e-5)
    np.testing.assert_array_equal(gradient(functools.partial(quantized, invert=True)), np.ones((20, 2)))
    np.testing.assert_allclose(gradient(quantized), gradient(exact, "sigmoid"), rtol=1e-6)
    many, few = (FSP((levels, levels)).apply({}, z, train=False).quantized for levels in (10_000, 4))
    exact = exact(z, "tanh")
    np.testing.assert_allclose(many, exact, atol=1e-3)
    assert np.abs(few - exact).max() > 0.1


@pytest.mark.parametrize("name", ["variance", "kurtosis", "tanh"])
def test_the_loss_is_that_of_unbiased_moments(name):
    z, mask = np.asarray(gaussian(3, 20, 4), np.float64) * 2 + 0.5, np.asarray(every_second((3, 20)))
    tokens, moments = z[mask], MOMENTS[name]
    mean, variance = tokens.mean(0), tokens.var(0, ddof=1)
    scores = (tokens - mean) / np.sqrt(variance)
    expected = 0.1 * np.mean(mean**2) + 0.07 * np.mean((variance - moments.variance) ** 2)
    if moments.shape:
        skewness, kurtosis = (scores**3).mean(0), (scores**4).mean(0) - 3
        expected += 0.06 * np.mean(skewness**2) + 0.05 * np.mean(kurtosis**2)
    loss = moments_loss(jnp.asarray(z, jnp.float32), moments, jnp.asarray(mask))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_or_equal_tokens_have_a_finite_loss_and_gradient(tokens):
    loss, gradient = jax.value_and_grad(lambda z: moments_loss(z, Moments(1.0, shape=True)))(jnp.ones((tokens, 3)))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_values_learn_from_the_quantization_loss():
    # In the peer a straight-through sum cuts them off: their gradient is None.
    quantizer, z = LatentQuantizer((5,), commitment_weight=0.3, quantization_weight=0.2), gaussian(40, 1) / 3
    variables = quantizer.init(KEY, z)
    gradient = jax.grad(lambda params: quantizer.apply({"params": params}, z, train=False).loss)(variables["params"])
    values, tokens = np.linspace(-0.5, 0.5, 5), np.asarray(z)[:, 0]
    nearest = np.abs(tokens[:, None] - values).argmin(-1)
    expected = [0.2 * 2 / 40 * np.sum(values[k] - tokens[nearest == k]) for k in range(5)]
    np.testing.assert_allclose(gradient["code_values"], expected, rtol=1e-4, atol=1e-7)
    assert np.abs(gradient["code_values"]).min() > 0
    of_tokens = jax.grad(lambda z: quantizer.apply(variables, z, train=False).loss)(z)
    np.testing.assert_allclose(of_tokens[:, 0], 0.3 * 2 / 40 * (tokens - values[nearest]), rtol=1e-3, atol=1e-7)
    of_task = jax.grad(
        lambda params, z: jnp.sum(quantizer.apply({"params": params}, z, train=False).quantized), argnums=(0, 1)
    )(variables["params"], z)
    assert not np.any(of_task[0]["code_values"])
    assert (of_task[1] == 1).all()


def test_learned_values_are_looked_up_and_decoded():
    quantizer = LatentQuantizer((3, 2))
    variables = {"params": {"code_values": jnp.array([5.0, -1.0, 0.3, 0.0, 7.0])}}
    out = quantizer.apply(variables, jnp.array([[0.0, 4.0], [9.0, 3.0]]), train=False)
    np.testing.assert_array_equal(out.quantized, np.array([[0.3, 7.0], [5.0, 0.0]], np.float32))
    np.testing.assert_array_equal(out.indices, [2 + 3, 0])
    np.testing.assert_array_equal(quantizer.apply(variables, out.indices, method="decode"), out.quantized)


def test_ties_go_to_the_lower_level_and_infinity_to_a_level_that_exists():
    quantizer = LatentQuantizer((5, 3), learn_values=False)
    z = jnp.array([[0.125, 0.25], [-0.375, -0.25], [jnp.inf, jnp.inf]])
    indices = quantizer.apply({}, z, method="encode")
    np.testing.assert_array_equal(indices[:2], [2 + 5 * 1, 0])
    assert (indices < 15).all()


def test_values_start_with_zero_among_them():
    quantizer = LatentQuantizer((2, 3, 4))
    values = quantizer.init(KEY, gaussian(1, 3))["params"]["code_values"]
    np.testing.assert_array_equal(values, [-0.5, 0, -0.5, 0, 0.5, -0.5, -0.25, 0, 0.25])
    assert not LatentQuantizer((2, 3), learn_values=False).init(KEY, gaussian(1, 2))
    with pytest.raises(UserError, match=r"must hold 9 values .* got none"):
        quantizer.apply({}, gaussian(1, 3), train=False)


TOKENS = 64


def global_batch():
    mask = np.random.default_rng(0).uniform(size=TOKENS) < np.linspace(-0.3, 1.3, TOKENS)
    z = np.where(mask[:, None], gaussian(TOKENS, 4) * 2 + 1, np.nan)
    return jnp.asarray(z, jnp.float32), jnp.asarray(mask)


def step(quantizer, params, z, mask, average=lambda x: x):
    def loss(params, z):
        out = quantizer.apply({"params": params}, z, mask, train=False)
        return average(out.loss), out

    (value, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    return (value, gradients[0], average(out.metrics)), (out.indices, gradients[1])


@pytest.mark.parametrize("kind", [FSP, LatentQuantizer])
def test_eight_devices_have_the_losses_of_one(kind):
    arguments = {"moments": "kurtosis"} if kind is FSP else {}
    alone, mapped = kind((4, 3), **arguments), kind((4, 3), axis_name="data", **arguments)
    params, batch = alone.init(KEY, jnp.zeros((1, 4)))["params"], global_batch()
    expected = jax.jit(lambda *a: step(alone, *a))(params, *batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in batch]
    run = jax.shard_map(
        lambda *a: step(mapped, *a, average=lambda x: jax.lax.pmean(x, "data")),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P(), P("data")),
    )
    sharded = jax.jit(lambda *a: step(alone, *a))(params, *split)
    for actual in (sharded, jax.jit(run)(params, *batch)):
        np.testing.assert_array_equal(actual[1][0], expected[1][0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)
    z, mask = (x.reshape(8, -1, *x.shape[1:]) for x in batch)
    whole, _ = jax.pmap(lambda z, mask: step(mapped, params, z, mask), axis_name="data")(z, mask)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mean, expected[0])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (FSP, {"activation": "relu"}, "activation must be one of 'tanh', 'sigmoid', .* got 'relu'"),
        (FSP, {"moments": "var"}, "moments must be one of 'variance', .*, None, got 'var'"),
        (FSP, {"quantize_rate": 1.5}, r"quantize_rate must be a probability in \[0, 1\], got 1.5"),
        (FSP, {"levels": (1,)}, r"levels must be integers of at least 2, .*, got \(1,\)"),
        (FSP, {"num_codebooks": 0}, "num_codebooks must be a positive integer, got 0"),
        (LatentQuantizer, {"commitment_weight": -1.0}, "commitment_weight must be a finite number of at least 0"),
        (LatentQuantizer, {"levels": (2**16, 2**15)}, "fewer than .* codes, not 2147483648"),
    ],
)
def test_mistakes_are_named(as_users_run_it, kind, arguments, message):
    with pytest.raises(UserError, match=message):
        kind(**{"levels": (4, 3)} | arguments)
