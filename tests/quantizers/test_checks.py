"""Users who look for NaN, for division by zero and for wrong indices find none in the library."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from helpers.recipes import KEY, NAMES, create, evaluate, train
from vqjax import (
    BSQ,
    FSP,
    FSQ,
    IBQ,
    LFQ,
    EMACodebook,
    GradientCodebook,
    MultiScaleVQ,
    RandomProjectionQuantizer,
    Replacement,
    Residual,
    VectorQuantizer,
)
from vqjax.estimators import ESTIMATORS, clip_norm_ratio
from vqjax.functional import Diversity, EntropyPenalty, Orthogonality, Region, softmax_vector_pool
from vqjax.functional.scalar import DISTRIBUTIONS
from vqjax.quantizers import LearnedAffine, RunningAffine, VQBridge

pytestmark = pytest.mark.full

OTHER_KEY = jax.random.key(6)
CHECKS = checkify.float_checks | checkify.index_checks | checkify.user_checks
TERMS = (Orthogonality(1.0), Orthogonality(1.0, active_only=True), Diversity(0.1), EntropyPenalty(0.1), Region(1.0))
OPTIONS = {
    "cosine": VectorQuantizer(16, distance="cosine", codebook=EMACodebook(replace=Replacement(None, 1))),
    "smoothing": VectorQuantizer(16, codebook=EMACodebook(smoothing=1e-5, start="sums_only", accumulation_steps=2)),
    "learned affine": VectorQuantizer(16, codebook=GradientCodebook(sync_nu=0.2, transform=LearnedAffine(2.0))),
    "bridge": VectorQuantizer(16, codebook=GradientCodebook(transform=VQBridge(2, heads=2, width=4))),
    "running affine": VectorQuantizer(16, codebook=EMACodebook(transform=RunningAffine())),
    "regularized": VectorQuantizer(16, codebook="gradient", regularizers=TERMS),
    "sampling": VectorQuantizer(16, sampling_temperature=0.5),
    "beam search": Residual(VectorQuantizer(16), 3, beam_size=2, dropout=0.5),
    "shared": Residual(VectorQuantizer(16), 3, shared_codebook=True, codebook_dim=4),
    "scales": MultiScaleVQ(VectorQuantizer(16), scales=(1, 2, 4), shared_codebook=False, gradient="per_scale"),
    "ibq": IBQ(16, regularizers=(EntropyPenalty(0.1),)),
    "fsq": FSQ((5, 8, 4, 5), num_codebooks=2, orthogonal_rotation=True),
    "fsq, noise": FSQ((5,) * 8, bound="symmetric", noise_dropout=0.5),
    "lfq": LFQ(8, smallest_probability=1e-5, soft_clamp=2.0),
    "bsq": BSQ(4, num_codebooks=2, commitment_weight=0.25),
    "labels": RandomProjectionQuantizer(16, 4, num_codebooks=3),
}
OPTIONS |= {
    f"fsp, {name}": FSP((8,) * 8, activation=name, invert=True, moments="kurtosis", quantize_rate=0.5)
    for name in DISTRIBUTIONS
}
OPTIONS["clipped"] = VectorQuantizer(16, estimator=clip_norm_ratio("rotation", 2.0))
OPTIONS |= {f"estimator {name}": VectorQuantizer(16, codebook="gradient", estimator=name) for name in ESTIMATORS}


def work(vq, variables, z):
    """A training step with its gradients, and evaluation, of which half of the tokens are masked."""
    half = jnp.broadcast_to(jnp.arange(z.shape[0])[:, None, None] % 2 == 0, z.shape[:-1])
    masked = vq.apply(variables, z, half, train=True, mutable=["codebook"], rngs={"quantizer": OTHER_KEY})
    return train(vq, variables, z), evaluate(vq, variables, z), masked


def case(name):
    if name in NAMES:
        vq, variables, z = create(name)
    else:
        vq, z = OPTIONS[name], create("vq")[2]
        variables = jax.jit(vq.init)({"params": KEY, "quantizer": KEY}, z)
    # A vector of zeros has no direction.
    return vq, variables, z.at[0, 0, 0].set(0.0)


@pytest.mark.parametrize("name", NAMES)
def test_float32_and_int32_whatever_the_default_is(name):
    vq, variables, z = create(name)
    results = jax.jit(functools.partial(work, vq))(variables, z)
    with jax.enable_x64(True):
        keys = {"params": jax.random.key(1), "quantizer": jax.random.key(2)}
        created = jax.jit(vq.init)(keys, z)
        wide = jax.jit(lambda *arguments: work(vq, *arguments))(variables, z)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.tree.leaves((created, wide)), jax.tree.leaves((variables, results))
    )
    chex.assert_trees_all_equal(jax.tree.leaves(created), jax.tree.leaves(variables))
    chex.assert_trees_all_close(jax.tree.leaves(wide), jax.tree.leaves(results), rtol=1e-4, atol=1e-5)


FLAGS = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_matmul_precision": "bfloat16",
    "jax_debug_key_reuse": True,
    "jax_default_prng_impl": "rbg",
}


@pytest.mark.parametrize("name", [*NAMES, *OPTIONS])
@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_jax_change_nothing(flag, name, request):
    vq, variables, z = case(name)
    expected = jax.jit(functools.partial(work, vq))(variables, z)
    request.addfinalizer(functools.partial(jax.config.update, flag, getattr(jax.config, flag)))
    jax.config.update(flag, FLAGS[flag])
    keys = {"params": jax.random.key(1), "quantizer": jax.random.key(2)}
    created = jax.jit(vq.init)(keys, z)
    actual = jax.jit(functools.partial(work, vq))(variables, z)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.tree.leaves(created), jax.tree.leaves(variables))
    chex.assert_trees_all_close(jax.tree.leaves(actual), jax.tree.leaves(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, *OPTIONS])
def test_checkify_finds_nothing(name, as_users_run_it):
    vq, variables, z = case(name)
    error, results = jax.jit(checkify.checkify(functools.partial(work, vq), errors=CHECKS))(variables, z)
    error.throw()
    chex.assert_tree_all_finite(jax.tree.leaves(results))


@pytest.fixture(scope="module")
def debug_nans():
    # What has been compiled without the check is not checked.
    jax.clear_caches()
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


@pytest.mark.parametrize("name", [*OPTIONS, *NAMES])
def test_debugging_of_nan_finds_nothing_in_any_operation(name, debug_nans, as_users_run_it):
    work(*case(name))


def test_indices_of_codes_and_of_masked_tokens_make_no_nan(debug_nans):
    vq, variables, _ = case("vq")
    vectors = vq.apply(variables, jnp.array([0, -1]), method="decode")
    np.testing.assert_array_equal(vectors[1], 0)


def test_a_window_outside_of_the_map_is_zero_without_nan(debug_nans):
    pooled = softmax_vector_pool(jnp.ones((1, 1, 2)), window=1, stride=1, padding=1)
    np.testing.assert_array_equal(pooled[0, 0], 0)
