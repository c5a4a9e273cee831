"""LFQ and BSQ, alone and in the stages of Residual: the definition in float64 NumPy, every option, devices, memory."""

import functools
import math
import re

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
from vqjax.functional import chunks
from vqjax.functional.binary import bit_entropies, group_sizes, product_distribution
from vqjax.quantizers.binary import BSQ, LFQ
from vqjax.quantizers.residual import Residual

TOKENS, DIM = 16, 6
LARGE = 65536
CASES = {
    "LFQ, everything": LFQ(
        3,
        num_codebooks=2,
        scale=0.5,
        soft_clamp=0.7,
        orthogonal_rotation=True,
        commitment_weight=0.3,
        diversity_gamma=2.0,
    ),
    "LFQ, projected": LFQ(4, num_codebooks=2, bits_per_group=3, inverse_temperature=1.0),
    "BSQ": BSQ(DIM, scale=2.0, soft_clamp=3.0, inverse_temperature=1.0, commitment_weight=0.1),
    "residual": Residual(LFQ(DIM, soft_clamp=1.5, inverse_temperature=1.0), 2),
    "residual, per stage": Residual(LFQ(4, commitment_weight=0.2), 2, gradient="per_stage"),
    "residual, rotated": Residual(LFQ(3, num_codebooks=2, orthogonal_rotation=True), 2),
}
# Compiling takes most of the time of these tests.
entropies_of_bits = jax.jit(bit_entropies, static_argnames="bits_per_group")
any_case = st.sampled_from(sorted(CASES))
examples = settings(max_examples=25)


@functools.cache
def variables_of(name):
    return jax.jit(CASES[name].init)(KEY, jnp.ones((2, DIM)))


@functools.partial(jax.jit, static_argnames=("module", "train"))
def run(module, variables, z, mask=None, *, train=True):
    def loss(z):
        out = module.apply(variables, z, mask, train=train, rngs={"quantizer": KEY})
        return out.loss + jnp.sum(jnp.cos(out.quantized.astype(jnp.float32))), out

    gradient, out = jax.grad(loss, has_aux=True)(z)
    return out, gradient


@functools.partial(jax.jit, static_argnames="module")
def round_trip(module, variables, z):
    indices = module.apply(variables, z, method="encode")
    return indices, module.apply(variables, indices, method="decode")


def all_codes(bits):
    return 2.0 * (np.arange(2**bits)[:, None] >> np.arange(bits)[::-1] & 1) - 1


def entropies(x, codes, inverse_temperature):
    """The definition: every token's distribution over all codes."""
    logits = 2 * inverse_temperature * np.asarray(x, np.float64) @ codes.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = lambda p: -(p * np.log(np.maximum(p, 1e-300))).sum(-1)  # noqa: E731
    return entropy(p).mean(), entropy(p.mean(0))


@pytest.mark.parametrize(("kind", "inverse_temperature"), [(LFQ, 1.0), (LFQ, 100.0), (BSQ, 10.0)])
def test_the_factorized_entropies_are_those_over_all_codes(kind, inverse_temperature):
    module = kind(DIM, inverse_temperature=inverse_temperature)
    out, _ = run(module, {}, gaussian(TOKENS, DIM))
    x, codes = np.asarray(gaussian(TOKENS, DIM), np.float64), all_codes(DIM)
    if kind is BSQ:
        x, codes = x / np.linalg.norm(x, axis=-1, keepdims=True), codes / np.sqrt(DIM)
    per_token, batch = entropies(x, codes, inverse_temperature)
    np.testing.assert_allclose(out.metrics["token_entropy"], per_token, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.metrics["batch_entropy"], batch, rtol=1e-5)
    np.testing.assert_allclose(out.loss, 0.1 * (per_token - batch), rtol=1e-4)


def test_the_gradient_is_that_of_the_definition_by_finite_differences():
    logits, direction = gaussian(TOKENS, 4), np.asarray(gaussian(TOKENS, 4, seed=2), np.float64)
    for which, gradient in enumerate(jax.jit(jax.jacrev(bit_entropies))(logits)):
        shifted = [np.asarray(logits, np.float64) + step * direction for step in (1e-5, -1e-5)]
        up, down = (entropies(x, all_codes(4), 0.25)[which] for x in shifted)
        np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), (up - down) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize("smallest_probability", [None, 1e-5])
def test_tokens_that_do_not_count_have_no_gradient_even_if_none_does(smallest_probability):
    """Bug: one over the smallest number above zero overflowed, and the gradient was NaN."""
    logits = gaussian(TOKENS, 4).at[0].set(jnp.nan)

    def both(logits, mask):
        return sum(bit_entropies(logits, mask=mask, smallest_probability=smallest_probability))

    differentiated = jax.jit(jax.value_and_grad(both))
    value, gradient = differentiated(logits, jnp.zeros(TOKENS, bool))
    assert float(value) == 0
    assert not np.any(gradient)
    mask = jnp.arange(TOKENS) > 0
    value, gradient = differentiated(logits, mask)
    np.testing.assert_allclose(value, differentiated(logits[1:], mask[1:])[0], rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[0])


def test_groups_add_up_and_bound_the_entropy_of_the_batch_from_above():
    logits = gaussian(TOKENS, 7)
    joint, grouped = entropies_of_bits(logits), entropies_of_bits(logits, bits_per_group=3)
    assert group_sizes(7, 3) == [3, 2, 2]
    parts = [entropies(part, all_codes(part.shape[-1]), 0.25)[1] for part in np.split(logits, [3, 5], axis=-1)]
    np.testing.assert_allclose(grouped[1], sum(parts), rtol=1e-6)
    np.testing.assert_allclose(grouped[0], joint[0], rtol=1e-6)
    assert float(grouped[1]) > float(joint[1])


def test_groups_have_the_entropy_of_the_batch_where_they_are_independent_over_it():
    # Each value of the first three bits meets each value of the other two.
    first, second = (np.asarray(gaussian(4, bits, seed=bits)) for bits in (3, 2))
    logits = np.concatenate([np.repeat(first, 4, axis=0), np.tile(second, (4, 1))], axis=-1)
    _, expected = entropies(logits, all_codes(5), 0.25)
    for largest in (3, 5):
        _, found = entropies_of_bits(jnp.asarray(logits), bits_per_group=largest)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("smallest_probability", [None, 0.01])
def test_parts_and_whole_agree_in_value_and_gradient(smallest_probability, monkeypatch):
    mask = jnp.arange(TOKENS) % 3 != 0

    def both(logits):
        return sum(bit_entropies(logits, mask=mask, smallest_probability=smallest_probability))

    whole = jax.jit(jax.value_and_grad(both))(gaussian(TOKENS, 4))
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 5 * (16 if smallest_probability else 4))
    parts = jax.jit(jax.value_and_grad(lambda logits: both(logits)))
    assert "scan" in str(parts.trace(gaussian(TOKENS, 4)).jaxpr)
    for part, expected in zip(parts(gaussian(TOKENS, 4)), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


def test_the_first_bit_varies_fastest_in_a_product_distribution():
    p = product_distribution(jnp.log(jnp.array([[9.0, 1.0]])))
    np.testing.assert_allclose(p, [[0.05, 0.45, 0.05, 0.45]], rtol=1e-6)


def test_codes_are_signs_and_the_first_feature_is_the_highest_bit():
    z = jnp.array([[1.0, -1.0, 0.0], [-2.0, 0.1, 3.0]])
    out, gradient = run(LFQ(3, scale=0.5, entropy_weight=0.0), {}, z)
    np.testing.assert_array_equal(out.quantized, [[0.5, -0.5, -0.5], [-0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(out.indices, [4, 3])
    np.testing.assert_allclose(gradient, -jnp.sin(out.quantized), rtol=1e-6)


def test_spherical_codes_have_unit_length_and_zero_vectors_no_gradient():
    z = gaussian(TOKENS, DIM).at[0].set(0.0)
    out, gradient = run(BSQ(DIM, commitment_weight=0.1), {}, z)
    np.testing.assert_allclose(np.linalg.norm(out.quantized, axis=-1), np.ones(TOKENS), rtol=1e-6)
    assert int(out.indices[0]) == 0
    assert not np.any(gradient[0])
    np.testing.assert_allclose(jnp.sum(gradient * z, axis=-1), np.zeros(TOKENS), atol=1e-5)  # along the sphere
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_residual_stages_halve_the_error_and_the_gradient_crosses_once():
    z = jnp.asarray(np.random.default_rng(0).uniform(-2, 2, size=(TOKENS, DIM)), jnp.float32)

    @functools.partial(jax.jit, static_argnames="gradient")
    def quantize(z, gradient):
        module = Residual(LFQ(DIM), 3, gradient=gradient)
        value, pull = jax.vjp(lambda z: module.apply({}, z).quantized, z)
        return value, pull(jnp.ones_like(z))[0]

    for gradient, crossings in (("total", 1.0), ("per_stage", 3.0)):
        value, pulled = quantize(z, gradient)
        assert float(jnp.max(jnp.abs(value - z))) <= 2**-2
        np.testing.assert_array_equal(pulled, jnp.full_like(z, crossings))


def test_dropped_stages_have_index_minus_one():
    module = Residual(LFQ(DIM), 3, dropout=1.0, dropout_min_stages=1)
    out, gradient = run(module, {}, gaussian(TOKENS, DIM))
    depths = np.sum(np.asarray(out.indices) >= 0, axis=-1)
    assert set(depths.tolist()) == {1, 2, 3}
    decode = jax.jit(functools.partial(module.apply, {}, method="decode"))
    np.testing.assert_array_equal(out.quantized, decode(out.indices))
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.full
@examples
@given(name=any_case, seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
def test_the_output_is_the_decoded_codes_bit_for_bit(name, seed, scale):
    check_output(name, gaussian(TOKENS // 2, DIM, seed=seed) * scale)


@pytest.mark.full
@pytest.mark.parametrize("name", ["LFQ, projected", "residual"])
def test_half_precision_and_any_leading_axes(name):
    check_output(name, gaussian(2, 2, 2, DIM).astype(jnp.bfloat16))


def check_output(name, z):
    module, variables = CASES[name], variables_of(name)
    out, gradient = run(module, variables, z)
    indices, decoded = round_trip(module, variables, z)
    assert out.quantized.dtype == gradient.dtype == z.dtype
    assert out.quantized.shape == gradient.shape == z.shape
    assert out.indices.dtype == jnp.int32
    assert out.loss.dtype == decoded.dtype == jnp.float32
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(out.quantized, decoded.astype(z.dtype))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((out, gradient)))


@pytest.mark.full
@examples
@given(name=any_case, seed=st.integers(0, 2**16), rubbish=st.sampled_from([0.0, np.nan]))
def test_masked_tokens_are_as_if_they_were_not_there(name, seed, rubbish):
    module, variables = CASES[name], variables_of(name)
    z = gaussian(TOKENS, DIM, seed=seed)
    valid = jnp.arange(TOKENS) % 2 == 0
    masked, gradient = run(module, variables, jnp.where(valid[:, None], z, rubbish), valid)
    alone, expected = run(module, variables, z[::2])
    np.testing.assert_array_equal(masked.indices[::2], alone.indices)
    assert bool(jnp.all(masked.indices[1::2] == -1))
    np.testing.assert_allclose(masked.quantized[::2], alone.quantized, rtol=1e-6, atol=1e-6)
    assert not np.any(masked.quantized[1::2])
    assert not np.any(gradient[1::2])
    np.testing.assert_allclose(gradient[::2], expected, rtol=1e-4, atol=1e-5)
    for measured, value in zip(jax.tree.leaves(masked.metrics), jax.tree.leaves(alone.metrics), strict=True):
        np.testing.assert_allclose(measured, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_batch_without_valid_tokens_is_finite(name):
    # vector-quantize-pytorch takes the mean of no token: NaN.
    out, gradient = run(CASES[name], variables_of(name), gaussian(TOKENS, DIM), jnp.zeros(TOKENS, bool))
    assert float(out.loss) == 0
    assert not np.any(gradient)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out))


@pytest.mark.full
@pytest.mark.parametrize("name", ["LFQ, everything", "residual"])
def test_eight_devices_have_the_entropy_of_the_global_batch(name):
    # vector-quantize-pytorch discards the sum over processes, and divides by their number all the same.
    module, variables = CASES[name], variables_of(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    z, mask = gaussian(TOKENS, DIM), jnp.arange(TOKENS) >= 5
    expected = run(module, variables, z, mask)

    split = NamedSharding(mesh, P("data"))
    assert_same(run(module, variables, jax.device_put(z, split), jax.device_put(mask, split)), expected)

    mapped = with_axis(module, "data")

    def step(variables, z, mask):
        def loss(z):
            out = mapped.apply(variables, z, mask, train=True)
            value = jax.lax.pmean(out.loss, "data") + jax.lax.psum(jnp.sum(jnp.cos(out.quantized)), "data")
            return value, (out.indices, jax.lax.pmean((out.loss, out.metrics), "data"))

        gradient, (indices, averaged) = jax.grad(loss, has_aux=True)(z)
        return (indices, gradient), averaged

    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": (P("data"), P())}
    step = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
    (indices, gradient), (value, found) = step(variables, z, mask)
    assert_same((expected[0].replace(indices=indices, loss=value, metrics=found), gradient), expected)


def with_axis(module, name):
    if isinstance(module, Residual):
        return module.clone(quantizer=with_axis(module.quantizer, name))
    return module.clone(axis_name=name)


def assert_same(actual, expected):
    (out, gradient), (expected_out, expected_gradient) = actual, expected
    np.testing.assert_array_equal(out.indices, expected_out.indices)
    for name, value in expected_out.metrics.items():
        np.testing.assert_allclose(out.metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(out.loss, expected_out.loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_the_entropy_of_the_global_batch_is_not_the_mean_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    # The tokens of a device agree, those of two devices do not: each device by itself sees a collapsed codebook.
    z = jnp.repeat(gaussian(8, DIM, seed=1), 2, axis=0)

    def step(logits):
        found = bit_entropies(logits, axis_name="data"), bit_entropies(logits)
        (_, batch), (_, local) = found
        return batch[None], *jax.lax.pmean((found[0][0], local), "data")

    specs = {"in_specs": P("data"), "out_specs": (P("data"), P(), P())}
    batch, per_token, local = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(5 * z)
    expected = entropies(z, all_codes(DIM), 1.25)
    np.testing.assert_allclose(per_token, expected[0], rtol=1e-5)
    np.testing.assert_allclose(batch, np.full(8, expected[1]), rtol=1e-5)
    np.testing.assert_allclose(local, expected[0], rtol=1e-5)
    assert float(local) < float(batch[0]) - 1


@pytest.mark.full
@pytest.mark.parametrize("module", [LFQ(18), BSQ(18, bits_per_group=18)])
def test_a_quarter_of_a_million_codes_train_within_two_gibibytes(module):
    # A float32 per token and code would be 64 GiB.

    def loss(z):
        out = module.apply({}, z, train=True)
        return out.loss + jnp.sum(out.quantized)

    tokens = jax.ShapeDtypeStruct((LARGE, 18), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss)).lower(tokens).compile()
    memory = step.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**29
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", step.as_text())
    sizes = [math.prod(int(axis) for axis in shape.split(",")) for shape in shapes]
    assert LARGE * 18 <= max(sizes) <= 2**23


def test_indices_that_are_none_decode_to_nan_or_zero():
    decoded = LFQ(3).apply({}, jnp.array([-1, 8, -2, 7]), method="decode")
    np.testing.assert_array_equal(decoded, [[0.0] * 3, [np.nan] * 3, [np.nan] * 3, [1.0] * 3])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LFQ, {"bits": 31}, r"bits must be an integer in \[1, 30\], got 31"),
        (LFQ, {"bits": 0}, r"bits must be an integer in \[1, 30\], got 0"),
        (LFQ, {"num_codebooks": 0}, r"num_codebooks must be a positive integer, got 0"),
        (BSQ, {"scale": 0.0}, r"scale must be a finite number above 0, got 0.0"),
        (LFQ, {"inverse_temperature": float("inf")}, r"inverse_temperature must be a finite number .*, got inf"),
        (LFQ, {"diversity_gamma": -1.0}, r"diversity_gamma must be a finite number of at least 0, got -1.0"),
        (LFQ, {"soft_clamp": 0.5}, r"soft_clamp must be at least scale=1.0, .*, got 0.5"),
        (LFQ, {"bits_per_group": 21}, r"bits_per_group must be an integer in \[1, 20\], got 21"),
        (LFQ, {"smallest_probability": 0.0}, r"smallest_probability must be in \(0, 1\), .*, got 0.0"),
        (
            LFQ,
            {"bits": 12, "smallest_probability": 1e-5},
            r"must be None, got 1e-05; it takes all 12 bits in one group",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_construction(kind, arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        kind(**({"bits": 4} | arguments))


def test_wrong_uses_are_named(as_users_run_it):
    with pytest.raises(UserError, match=r"smallest_probability must be None with 3 groups of bits, got 0.1"):
        bit_entropies(jnp.zeros((2, 3)), bits_per_group=1, smallest_probability=0.1)
    with pytest.raises(UserError, match=r"smallest_probability must be above 0, or None, got 0.0"):
        bit_entropies(jnp.zeros((2, 3)), smallest_probability=0.0)
    with pytest.raises(UserError, match=r"The variables must hold a rotation of 3 features, got none; create them"):
        LFQ(3, orthogonal_rotation=True).apply({}, jnp.zeros((2, 3)))
