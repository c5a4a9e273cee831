"""FSQ, alone and in the stages of Residual: the contract of every quantizer, and each option."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.quantizing import KEY, every_second, gaussian
from vqjax.errors import UserError
from vqjax.functional.scalar import bounded, soft_clamp
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.scalar import FSQ

DIM, SHAPE = 6, (2, 4, 6)
LEVELS = (4, 3, 5, 8, 7, 4)
QUANTIZERS = {
    "asymmetric": FSQ(LEVELS),
    "paper": FSQ(LEVELS, bound="paper"),
    "symmetric": FSQ((2, *LEVELS[1:]), bound="symmetric", noise_dropout=0.5),
    "clamped": FSQ(LEVELS, hard_clamp=True),
    "rotated": FSQ((5, 5, 5), num_codebooks=2, orthogonal_rotation=True),
    "projected": FSQ((8, 5), num_codebooks=2, bound="symmetric", hard_clamp=True, orthogonal_rotation=True),
    "residual": Residual(FSQ(LEVELS), 3),
    "residual projected": Residual(FSQ((5, 5), hard_clamp=False), 2, gradient="per_stage", soft_clamp=2.0),
    "residual codebooks": Residual(FSQ((3, 4, 5), num_codebooks=2), 2),
}
every = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
ALL = jnp.ones(SHAPE[:-1], bool)


@functools.cache
def variables_of(quantizer):
    return jax.jit(quantizer.init)({"params": KEY, "quantizer": KEY}, jnp.zeros(SHAPE))


@functools.partial(jax.jit, static_argnames="quantizer")
def run(quantizer, variables, z, mask):
    return quantizer.apply(variables, z, mask, train=False)


@functools.partial(jax.jit, static_argnames="quantizer")
def encode(quantizer, variables, z, mask):
    return quantizer.apply(variables, z, mask, method="encode")


@functools.partial(jax.jit, static_argnames="quantizer")
def decode(quantizer, variables, indices):
    return quantizer.apply(variables, indices, method="decode")


@every
@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e30]),
    mask=st.sampled_from([ALL, ~ALL, every_second(SHAPE[:-1])]),
)
def test_indices_decode_to_the_output_bit_for_bit(quantizer, seed, scale, mask):
    z, variables = jnp.where(mask[..., None], gaussian(*SHAPE, seed=seed) * scale, jnp.nan), variables_of(quantizer)
    out, indices = run(quantizer, variables, z, mask), encode(quantizer, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(decode(quantizer, variables, indices), out.quantized)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))
    assert (indices[~mask] == -1).all()
    assert not out.quantized[~mask].any()
    assert ((indices[mask] >= 0) & (indices[mask] < quantizer.num_codes)).all()


@pytest.mark.parametrize("name", ["asymmetric", "symmetric", "residual"])
def test_codes_are_the_same_bits_in_every_compilation(name):
    # Computed from the level, a fused product and sum gave other bits than the two one after the other.
    quantizer = QUANTIZERS[name]
    variables = variables_of(quantizer)
    out = run(quantizer, variables, gaussian(*SHAPE), ALL)
    np.testing.assert_array_equal(quantizer.apply(variables, out.indices, method="decode"), out.quantized)
    np.testing.assert_array_equal(decode(quantizer, variables, out.indices[1, 2]), out.quantized[1, 2])


@pytest.mark.parametrize("name", ["asymmetric", "residual"])
def test_masked_tokens_take_no_part(name):
    quantizer, mask = QUANTIZERS[name], every_second(SHAPE[:-1])
    z = jnp.where(mask[..., None], gaussian(*SHAPE), jnp.nan)
    out, alone = run(quantizer, {}, z, mask), quantizer.apply({}, z[mask])
    np.testing.assert_array_equal(out.indices[mask], alone.indices)
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(out.metrics[name], value, rtol=1e-5, err_msg=name)
    gradient = jax.grad(lambda z: jnp.sum(run(quantizer, {}, z, mask).quantized))(z)
    assert not gradient[~mask].any()
    assert gradient[mask].all()


@pytest.mark.parametrize("name", ["paper", "residual"])
def test_lower_precision(name):
    quantizer, z = QUANTIZERS[name], gaussian(*SHAPE).astype(jnp.bfloat16)
    out, exact = (run(quantizer, {}, x, ALL) for x in (z, z.astype(jnp.float32)))
    assert out.quantized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.indices, exact.indices)
    np.testing.assert_array_equal(out.quantized, exact.quantized.astype(jnp.bfloat16))


def test_indices_that_are_none():
    for quantizer in (FSQ((4, 3)), Residual(FSQ((4, 3)), 2)):
        indices = jnp.array([-1, 0, 12, -2])
        indices = indices if isinstance(quantizer, FSQ) else jnp.stack([indices, jnp.zeros_like(indices)], -1)
        vectors = quantizer.apply({}, indices, method="decode")
        np.testing.assert_array_equal(jnp.isnan(vectors).any(-1), [False, False, True, True])
    assert not FSQ((4, 3)).apply({}, jnp.array([-1]), method="decode").any()


@pytest.mark.parametrize("bound", ["paper", "asymmetric", "symmetric"])
def test_bounds_and_their_gradients_are_the_formulas(bound):
    # Mentzer et al., Appendix A.1 (eps = 1e-3, tan), and the two of vector-quantize-pytorch, in float64.
    z, counts = np.asarray(gaussian(64, 3), np.float64) * 2, np.array([4, 5, 8])
    half, offset = (counts - 1) * (0.999 if bound == "paper" else 1.001) / 2, np.array([0.5, 0, 0.5])
    shift = np.tan(offset / half) if bound == "paper" else np.arctanh(offset / half)
    if bound == "symmetric":
        value, slope = np.tanh(z), 1 - np.tanh(z) ** 2
        levels = np.floor((counts - 1) * (value + 1) / 2 + 0.5)
    else:
        value, slope = np.tanh(z + shift) * half - offset, (1 - np.tanh(z + shift) ** 2) * half / (counts // 2)
        levels, value = np.round(value) + counts // 2, value / (counts // 2)
    quantizer = FSQ((4, 5, 8), bound=bound)
    out = quantizer.apply({}, jnp.asarray(z, jnp.float32))
    np.testing.assert_array_equal(out.indices, levels @ [1, 4, 20])
    np.testing.assert_allclose(bounded(jnp.asarray(z, jnp.float32), (4, 5, 8), bound), value, rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda z: jnp.sum(quantizer.apply({}, z).quantized))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", ["asymmetric", "paper", "symmetric", "clamped"])
def test_every_level_is_reached(name):
    quantizer = QUANTIZERS[name]
    z = jnp.broadcast_to(jnp.linspace(-8, 8, 4001)[:, None], (4001, DIM))
    values = quantizer.apply({}, z, train=False).quantized
    assert [len(np.unique(values[:, j])) for j in range(DIM)] == list(quantizer.levels)
    assert np.abs(values).max() <= 1


def test_indices_beyond_2_to_the_24_are_exact():
    # In float32, as the peer adds them up, 493,827,157 came back as 493,827,136.
    quantizer = FSQ((1000, 1000, 1000), bound="symmetric", hard_clamp=True)
    indices = jnp.array([493_827_157, 0, 999_999_999, 16_777_217])
    vectors = quantizer.apply({}, indices, method="decode")
    np.testing.assert_array_equal(quantizer.apply({}, vectors, method="encode"), indices)
    np.testing.assert_array_equal(quantizer.apply({}, vectors).quantized, vectors)


def test_no_codebook_is_ever_built():
    quantizer = FSQ((8,) * 10)
    jaxpr = jax.make_jaxpr(lambda z: quantizer.apply({}, z))(jnp.zeros((5, 10)))
    assert quantizer.num_codes == 2**30
    assert max(v.aval.size for e in jaxpr.eqns for v in e.outvars) < 1000


def test_more_than_a_thousand_levels_stay_in_range():
    # The margin of the bound is then more than a level: the peer returns codes that it does not have.
    quantizer = FSQ((3001, 3))
    indices = quantizer.apply({}, jnp.array([[-20.0, 0.0], [20.0, 0.0]]), method="encode")
    np.testing.assert_array_equal(indices % 3001, [0, 3000])


def test_noise_is_half_a_step_around_the_code():
    quantizer = FSQ((3, 9), bound="symmetric", noise_dropout=0.25)
    z = gaussian(4000, 2)
    code, noisy = (quantizer.apply({}, z, train=train, rngs={"quantizer": KEY}) for train in (False, True))
    np.testing.assert_array_equal(noisy.indices, code.indices)
    moved = np.asarray(noisy.quantized - code.quantized)
    half_step = np.array([1 / 2, 1 / 8])
    assert (np.abs(moved) <= half_step + 1e-6).all()
    inside = np.abs(code.quantized) < 1
    for feature in range(2):
        of_inside = moved[inside[:, feature], feature]
        assert of_inside.max() > 0.9 * half_step[feature]
        assert of_inside.min() < -0.9 * half_step[feature]
        assert abs(np.mean(of_inside != 0) - 0.25) < 0.04
    assert np.abs(noisy.quantized).max() <= 1
    with pytest.raises(UserError, match=r"noise_dropout=0\.25 draws random numbers"):
        quantizer.apply({}, z, train=True)


def test_the_rotation_is_undone():
    quantizer = QUANTIZERS["rotated"]
    rotation = np.asarray(variables_of(quantizer)["codebook"]["rotation"])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    z = gaussian(7, 3)
    inner = FSQ((5, 5, 5)).apply({}, jnp.asarray(z @ rotation))
    alone = FSQ((5, 5, 5), orthogonal_rotation=True)
    out = alone.apply({"codebook": {"rotation": jnp.asarray(rotation)}}, z)
    np.testing.assert_array_equal(out.indices, inner.indices)
    np.testing.assert_allclose(out.quantized, inner.quantized @ rotation.T, atol=1e-6)
    with pytest.raises(UserError, match="must hold a rotation of 3 features, got none"):
        alone.apply({}, z)


def test_each_stage_divides_what_is_left_by_the_number_of_levels():
    z = gaussian(50, 2) * 3
    inside = soft_clamp(z, (4 / 3, 5 / 4))
    for stages in (1, 2, 3):
        quantizer = Residual(FSQ((4, 5)), stages)
        left = np.abs(np.asarray(inside - quantizer.apply({}, z).quantized)).max(axis=0)
        largest = np.array([4, 5]) ** (1.0 - stages) / np.array([3, 4])
        assert (left <= largest + 1e-6).all()
        assert (left > largest / 2).all()


def test_fewer_stages_give_the_coarser_vector():
    z = gaussian(8, DIM)
    three, two = (Residual(FSQ(LEVELS), stages) for stages in (3, 2))
    indices = three.apply({}, z, method="encode")
    np.testing.assert_array_equal(three.apply({}, indices[:, :2], method="decode"), two.apply({}, z).quantized)


def test_the_gradient_does_not_grow_with_the_stages_unless_asked_for():
    z = np.asarray(gaussian(50, 2) / 3)

    def gradient(**arguments):
        quantizer = Residual(FSQ((4, 5)), 3, **arguments)
        return np.asarray(jax.grad(lambda z: jnp.sum(quantizer.apply({}, z).quantized))(jnp.asarray(z)))

    limit = np.array([4 / 3, 5 / 4])
    np.testing.assert_allclose(gradient(), 1 - np.tanh(z / limit) ** 2, rtol=1e-4)
    ratio = gradient(gradient="per_stage") / gradient()
    assert set(np.unique(ratio.round(3))) <= {1, 2, 3}  # less than 3 where a stage clips
    assert np.mean(ratio.round(3) == 3) > 0.5


@pytest.mark.full
def test_dropout_keeps_the_first_stages():
    quantizer = Residual(FSQ(LEVELS), 4, dropout=0.7, dropout_min_stages=2)
    out = quantizer.apply({}, gaussian(40, 3, DIM), train=True, rngs={"quantizer": KEY})
    depths = np.sum(np.asarray(out.indices) != -1, axis=-1)
    assert (depths == depths[:, :1]).all()
    assert set(depths[:, 0]) == {2, 3, 4}
    np.testing.assert_array_equal(quantizer.apply({}, out.indices, method="decode"), out.quantized)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 8}, "levels must be integers of at least 2, .*, got 8"),
        ({"levels": ()}, r"levels must be integers of at least 2, .*, got \(\)"),
        ({"levels": (8, 1)}, r"levels must be integers of at least 2, .*, got \(8, 1\)"),
        ({"levels": (4, 2)}, r"levels must be at least 3 each, got \(4, 2\); or use bound='symmetric'"),
        ({"levels": (8,) * 11}, "fewer than .* codes, not 8589934592, .* an int32 index"),
        ({"levels": (4,), "num_codebooks": 0}, "num_codebooks must be a positive integer, got 0"),
        ({"levels": (4,), "bound": "tanh"}, "bound must be one of 'paper', 'asymmetric', 'symmetric', got 'tanh'"),
        ({"levels": (4,), "noise_dropout": 0.5}, "noise_dropout must be None, got 0.5; or use bound='symmetric'"),
        ({"levels": (4,), "bound": "symmetric", "noise_dropout": 2}, "noise_dropout must be a probability"),
        ({"levels": (4,), "bound": "symmetric", "noise_dropout": 0.0}, "or None, got 0.0"),
    ],
)
def test_mistakes_are_named(as_users_run_it, arguments, message):
    with pytest.raises(UserError, match=message):
        FSQ(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_quantizers": 0}, "num_quantizers must be a positive integer, got 0"),
        ({"gradient": "both"}, "gradient must be one of 'total', 'per_stage', got 'both'"),
        ({"soft_clamp": 2.0}, "soft_clamp must be None, got 2.0; stages that clip already limit their input"),
        ({"soft_clamp": -1.0}, "soft_clamp must be a finite number above 0, got -1.0"),
        ({"codebook_dim": 3}, "codebook_dim must be None, got 3; codes of FSQ have 2"),
        ({"beam_size": 2}, "beam_size must be 1, got 2; FSQ does not support it"),
        ({"quantizer": FSQ((4, 3), bound="paper")}, "bound must be 'symmetric' or left out in Residual"),
        ({"quantizer": FSQ((3, 3), orthogonal_rotation=True)}, "orthogonal_rotation must be False in Residual"),
    ],
)
def test_mistakes_in_residuals_are_named(as_users_run_it, arguments, message):
    with pytest.raises(UserError, match=message):
        Residual(**{"quantizer": FSQ((4, 3)), "num_quantizers": 2} | arguments)


def test_other_features_than_in_init_are_named():
    for quantizer in (FSQ((4, 3)), Residual(FSQ((4, 3)), 2)):
        with pytest.raises(UserError, match="z must have 2 features, as the codes have, got 3"):
            quantizer.apply({}, gaussian(5, 3))


def test_a_list_of_levels_is_as_good_as_a_tuple():
    assert FSQ([4, 3]) == FSQ((4, 3))
    assert hash(FSQ([4, 3])) == hash(FSQ((4, 3)))
