"""RandomProjectionQuantizer: random labels that never change."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.quantizing import CODES, KEY, check_eight_devices, every_second, gaussian, train
from vqjax import UserError
from vqjax.quantizers.random_projection import RandomProjectionQuantizer

pytestmark = pytest.mark.full

SHAPE, FEATURES, CODE_DIM = (4, 8), 6, 5
few = settings(max_examples=5)
fixed = pytest.mark.parametrize("num_codebooks", [1, 3])


@functools.partial(jax.jit, static_argnames="vq")
def apply(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask)


@functools.partial(jax.jit, static_argnames="vq")
def encode(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask, method="encode")


@functools.cache
def random_projection(num_codebooks):
    vq = RandomProjectionQuantizer(CODES, CODE_DIM, num_codebooks)
    return vq, jax.jit(vq.init)(KEY, gaussian(1, FEATURES))


@few
@given(
    seed=st.integers(0, 2**16),
    num_codebooks=st.sampled_from([1, 3]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    masked=st.booleans(),
)
def test_decoded_indices_are_the_output(seed, num_codebooks, dtype, masked):
    vq, variables = random_projection(num_codebooks)
    z = (3 * gaussian(*SHAPE, FEATURES, seed=seed)).astype(dtype)
    mask = every_second(SHAPE) if masked else jnp.ones(SHAPE, bool)
    z = jnp.where(mask[..., None], z, jnp.nan)
    out, indices = apply(vq, variables, z, mask), encode(vq, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    decoded = vq.apply(variables, indices, method="decode")
    assert (decoded.dtype, out.quantized.dtype) == (jnp.float32, dtype)
    np.testing.assert_array_equal(decoded.astype(dtype), out.quantized)
    assert bool(jnp.all(jnp.isfinite(out.loss)))
    assert not np.any(out.quantized[~mask])


@fixed
def test_labels_are_the_nearest_unit_codes_of_standardized_projections(num_codebooks):
    vq, variables = random_projection(num_codebooks)
    # Far from zero, where the variance as a difference of mean squares has no digits left, and may be negative.
    z = gaussian(*SHAPE, FEATURES) + 3000
    out = apply(vq, variables, z)
    wide = np.asarray(z, np.float64)
    wide = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    projected = np.einsum("...d,cde->...ce", wide, np.asarray(variables["codebook"]["projections"], np.float64))
    codes = np.asarray(variables["codebook"]["quantizer"]["codes"], np.float64).reshape(num_codebooks, CODES, CODE_DIM)
    expected = np.argmax(np.einsum("...ce,cke->...ck", projected, codes), axis=-1)
    np.testing.assert_array_equal(out.indices, expected if num_codebooks > 1 else expected[..., 0])
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-6)
    assert out.quantized.shape == (*SHAPE, num_codebooks * CODE_DIM)
    cosines = np.einsum("...ce,cke->...ck", projected, codes).max(-1) / np.linalg.norm(projected, axis=-1)
    np.testing.assert_allclose(out.metrics["angle"], np.arccos(cosines).mean(), atol=2e-3)


def test_targets_are_not_trained():
    vq, variables = random_projection(3)
    assert set(variables) == {"codebook"}
    assert jax.tree.map(jnp.shape, dict(variables["codebook"])) == {
        "projections": (3, FEATURES, CODE_DIM),
        "quantizer": {"codes": (3, CODES, CODE_DIM)},
    }
    _, after = train(vq, variables, gaussian(*SHAPE, FEATURES))
    chex.assert_trees_all_equal(after, variables)

    def total(z):
        out = vq.apply(variables, z)
        return out.loss + jnp.sum(out.quantized)

    loss, slope = jax.value_and_grad(total)(gaussian(*SHAPE, FEATURES))
    assert np.isfinite(loss)
    assert not np.any(slope)
    assert float(vq.apply(variables, gaussian(*SHAPE, FEATURES)).loss) == 0


def test_a_common_offset_collapses_the_labels_unless_features_are_standardized():
    # Section 3 of the paper gives this as the reason of the normalization.
    z = gaussian(64, FEATURES) + 20
    used = {}
    for standardize in (True, False):
        vq = RandomProjectionQuantizer(CODES, CODE_DIM, standardize=standardize)
        used[standardize] = len(np.unique(vq.apply(random_projection(1)[1], z, method="encode")))
    assert used[False] <= 2 < 6 <= used[True]


@pytest.mark.parametrize("mapped", [False, True])
def test_eight_devices_are_one(mapped):
    check_eight_devices(*random_projection(3), gaussian(32, FEATURES), mapped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, r"num_codes must be a positive integer, got 0"),
        ({"codebook_dim": 2.0}, r"codebook_dim must be a positive integer, got 2.0"),
        ({"num_codebooks": 0}, r"num_codebooks must be a positive integer, got 0"),
    ],
)
def test_mistakes_are_named(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        RandomProjectionQuantizer(**({"num_codes": 4, "codebook_dim": 2} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    vq, variables = random_projection(1)
    with pytest.raises(UserError, match=r"must hold projections of shape \(1, 5, 5\) .* got ones of shape \(1, 6, 5\)"):
        vq.apply(variables, gaussian(2, 5))
    with pytest.raises(UserError, match=r"must hold projections of shape .*, got none"):
        vq.apply({}, gaussian(2, 6))
