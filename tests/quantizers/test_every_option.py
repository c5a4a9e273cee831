"""Properties of every combination of options: random examples of shape, dtype, mask and data.

More than a thousand with --full, a few of them without.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers.shares import examples
from vqjax import EMACodebook, FrozenCodebook, GradientCodebook, Replacement, VectorQuantizer
from vqjax.estimators import ESTIMATORS, clip_norm_ratio, keyword_names
from vqjax.functional.regularizers import Diversity, EntropyLoss, EntropyPenalty, Orthogonality, Region
from vqjax.quantizers import LearnedAffine, LinearTransform, RunningAffine, VQBridge

DIM, CODES, TOKENS = 8, 11, 16
KEY = jax.random.key(0)
LEARNED = {"codebook": "gradient"}
DIVIDED = {"heads": 2, "separate_codebooks": True}
LAST_BATCH = Replacement(below=None, unused_after=1)
CASES = {
    "default": {},
    "cosine": {"distance": "cosine"},
    "cosine, learned": LEARNED | {"distance": "cosine"},
    "learned": {"codebook": GradientCodebook(weight=0.5, sync_nu=0.2)},
    "frozen": {"codebook": "frozen"},
    "smoothing": {"codebook": EMACodebook(decay=0.8, smoothing=1e-5, start="one_token")},
    "sums only": {"codebook": EMACodebook(smoothing=1e-5, start="sums_only")},
    "accumulation": {"codebook": EMACodebook(accumulation_steps=2)},
    "heads": {"heads": 2},
    "heads, cosine": {"heads": 4, "distance": "cosine"},
    "separate codebooks": DIVIDED,
    "separate, learned": LEARNED | DIVIDED | {"distance": "cosine"},
    "separate, regularized": LEARNED | DIVIDED | {"regularizers": (Orthogonality(1.0), Diversity(0.1), Region(1.0))},
    "projection": {"codebook_dim": 3},
    "projection, heads": DIVIDED | {"codebook_dim": 3, "distance": "cosine"},
    "root mean square": LEARNED | {"latent_norm": "rms", "commitment": "relative"},
    "layer norm, heads": DIVIDED | {"latent_norm": "layer", "differentiate_norm": False},
    "cosine, around the norm": {"distance": "cosine", "differentiate_norm": False},
    "angular commitment": {"commitment": "angular", "estimator": "rotation_about_mean"},
    "SimVQ": {"codebook": FrozenCodebook(LinearTransform())},
    "SimVQ, cosine": {"codebook": GradientCodebook(transform=LinearTransform()), "distance": "cosine"},
    "bridge": {"codebook": GradientCodebook(sync_nu=0.2, transform=VQBridge(1, heads=2, width=4))},
    "bridge, separate": DIVIDED | {"codebook": FrozenCodebook(VQBridge(1, heads=2, width=4))},
    "affine, learned": {"codebook": GradientCodebook(transform=LearnedAffine(2.0))},
    "affine, running": {"codebook": EMACodebook(transform=RunningAffine())},
    "affine, running, learned": {"codebook": GradientCodebook(transform=RunningAffine()), "heads": 2},
    "affine, running, separate": DIVIDED | {"codebook": EMACodebook(transform=RunningAffine())},
    "regularized": LEARNED | {"regularizers": (Orthogonality(1.0), Diversity(0.1), EntropyPenalty(0.1))},
    "region": {"codebook": GradientCodebook(weight=0.0), "regularizers": (Region(1.0),), "heads": 2},
    "diversity": {"regularizers": (Diversity(0.1),)},
    "entropy loss": LEARNED | {"regularizers": (EntropyLoss(0.1, temperature=1.0),)},
    "entropy loss, argmax": DIVIDED | {"regularizers": (EntropyLoss(0.1, temperature=1.0, form="argmax"),)},
    "clipped": {"estimator": clip_norm_ratio("rotation", 2.0)},
    "reflection, heads": DIVIDED | {"estimator": "reflection"},
    "dynamic, heads": DIVIDED | {"estimator": "dynamic_straight_through"},
    "diveq_detached": {"codebook": GradientCodebook(weight=0.0), "estimator": "diveq_detached"},
}
RANDOM_CASES = {
    "sampling": {"sampling_temperature": 0.5},
    "sampling, cosine heads": DIVIDED | {"sampling_temperature": 0.1, "distance": "cosine"},
    "replacement": {"codebook": EMACodebook(decay=0.5, replace=Replacement(below=0.9))},
    "least recently used": {"codebook": EMACodebook(replace=LAST_BATCH)},
    "replacement, separate": DIVIDED | {"codebook": EMACodebook(replace=LAST_BATCH), "distance": "cosine"},
    "replacement, affine": {"codebook": GradientCodebook(replace=LAST_BATCH, transform=LearnedAffine(2.0))},
} | {
    f"estimator {name}": LEARNED | {"estimator": name}
    for name in ESTIMATORS
    if "key" in keyword_names(ESTIMATORS[name])
}
INPUTS = [((TOKENS, DIM), jnp.float32), ((2, 4, 2, DIM), jnp.bfloat16)]
every_case = st.sampled_from(sorted(CASES))
any_case = st.sampled_from(sorted(CASES | RANDOM_CASES))


@functools.cache
def quantizer(name):
    vq = VectorQuantizer(num_codes=CODES, **(CASES | RANDOM_CASES)[name])
    return vq, jax.jit(vq.init)(jax.random.key(3), jnp.ones((2, DIM)))


@functools.partial(jax.jit, static_argnames=("vq", "train"))
def run(vq, variables, z, mask=None, key=KEY, *, train):
    def loss(z):
        out, changed = vq.apply(variables, z, mask, train=train, mutable=["codebook"], rngs={"quantizer": key})
        return out.loss + jnp.sum(jnp.cos(out.quantized.astype(jnp.float32))), (out, changed)

    gradient, (out, changed) = jax.grad(loss, has_aux=True)(z)
    return out, variables | changed, gradient


@functools.partial(jax.jit, static_argnames="vq")
def round_trip(vq, variables, z, mask=None):
    indices = vq.apply(variables, z, mask, method="encode")
    return indices, vq.apply(variables, indices, method="decode")


def tokens(seed, shape, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, dtype)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert bool(jnp.all(jnp.isfinite(leaf))), leaf


def assert_equal(tree, other, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), tree, other)


@settings(max_examples=examples(400, 2))
@given(
    name=any_case,
    shape_and_dtype=st.sampled_from(INPUTS),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
)
def test_evaluation_is_the_decoded_codes_and_changes_nothing(name, shape_and_dtype, seed, scale):
    vq, variables = quantizer(name)
    shape, dtype = shape_and_dtype
    z = tokens(seed, shape, scale, dtype)
    out, after, gradient = run(vq, variables, z, train=False)
    indices, decoded = round_trip(vq, variables, z)
    assert out.quantized.dtype == dtype
    assert out.indices.dtype == jnp.int32
    np.testing.assert_array_equal(out.indices, indices)
    tolerance = 1e-5 if vq.codebook_dim is not None else 0.0
    np.testing.assert_allclose(out.quantized, decoded.astype(dtype), rtol=tolerance, atol=tolerance)
    assert_equal(after, variables, rtol=0)
    assert_finite((out, gradient))


@settings(max_examples=examples(300, 2))
@given(name=any_case, seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
def test_two_training_steps_stay_finite_and_keep_the_state_in_float32(name, seed, scale):
    vq, variables = quantizer(name)
    for step in range(2):
        out, variables, gradient = run(
            vq, variables, tokens(seed + step, (TOKENS, DIM), scale), key=jax.random.key(seed), train=True
        )
        assert_finite((out, variables, gradient))
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(variables))


@settings(max_examples=examples(200, 2))
@given(name=every_case, seed=st.integers(0, 2**16))
def test_training_looks_up_in_the_codebook_before_its_update(name, seed):
    vq, variables = quantizer(name)
    z = tokens(seed, (TOKENS, DIM))
    trained, _, gradient = run(vq, variables, z, train=True)
    evaluated, _, same = run(vq, variables, z, train=False)
    np.testing.assert_array_equal(trained.quantized, evaluated.quantized)
    np.testing.assert_array_equal(trained.indices, evaluated.indices)
    np.testing.assert_allclose(trained.loss, evaluated.loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, same, rtol=1e-5, atol=1e-6)


@pytest.mark.full
@settings(max_examples=examples(300, 2))
@given(name=every_case, seed=st.integers(0, 2**16), rubbish=st.sampled_from([0.0, 1e3, np.nan]))
def test_masked_tokens_are_as_if_they_were_not_there(name, seed, rubbish):
    vq, variables = quantizer(name)
    z = tokens(seed, (TOKENS, DIM))
    valid = jnp.arange(TOKENS) % 2 == 0
    masked, after, gradient = run(vq, variables, jnp.where(valid[:, None], z, rubbish), valid, train=True)
    alone, expected, expected_gradient = run(vq, variables, z[::2], train=True)
    np.testing.assert_array_equal(masked.indices[::2], alone.indices)
    np.testing.assert_array_equal(masked.quantized[::2], alone.quantized)
    assert bool(jnp.all(masked.indices[1::2] == -1))
    assert bool(jnp.all(masked.quantized[1::2] == 0))
    assert bool(jnp.all(gradient[1::2] == 0))
    np.testing.assert_allclose(gradient[::2], expected_gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(masked.loss, alone.loss, rtol=1e-4, atol=1e-6)
    assert_equal(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CASES | RANDOM_CASES))
def test_eight_devices_do_what_one_does(name):
    vq, variables = quantizer(name)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    z = tokens(7, (TOKENS, DIM))
    key = jax.random.key(5)
    one, after_one, gradient_one = run(vq, variables, z, key=key, train=True)
    sharded = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    eight, after_eight, gradient_eight = run(vq, replicated, sharded, key=key, train=True)
    np.testing.assert_array_equal(one.indices, eight.indices)
    assert_equal(after_one, after_eight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.loss, eight.loss, rtol=1e-5)
    np.testing.assert_allclose(gradient_one, gradient_eight, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["default", "learned", "separate codebooks", "affine, running", "accumulation"])
def test_rematerialization_repeats_neither_value_nor_update(name):
    vq, variables = quantizer(name)
    z = tokens(8, (TOKENS, DIM))

    @jax.jit
    def through_checkpoint(z):
        @jax.checkpoint
        def loss(z):
            out, changed = vq.apply(variables, z, train=True, mutable=["codebook"])
            return out.loss + jnp.sum(jnp.cos(out.quantized)), changed

        gradient, changed = jax.grad(loss, has_aux=True)(z)
        return gradient, changed

    gradient, changed = through_checkpoint(z)
    _, after, expected = run(vq, variables, z, train=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    assert_equal(variables | changed, after, rtol=1e-5, atol=1e-6)
