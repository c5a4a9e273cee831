"""Arguments and inputs that quantizers refuse, and odd ones that they accept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
from helpers.quantizing import KEY, gaussian
from vqjax import (
    BSQ,
    FSP,
    FSQ,
    LFQ,
    BinaryMapper,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    Grouped,
    LatentQuantizer,
    MultiScaleVQ,
    ProductVQ,
    RandomProjectionQuantizer,
    Replacement,
    Residual,
    ResidualVQ,
    UserError,
    VectorQuantizer,
)
from vqjax.evaluation import Metric
from vqjax.functional.codebook import Assignment
from vqjax.functional.regularizers import Diversity
from vqjax.quantizers import ImplicitCodebook, LearnedAffine, LinearTransform, RunningAffine
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.codebooks import BaseCodebook
from vqjax.quantizers.grid import GridQuantizer

Z = gaussian(4, 6, 8)
LEARNED = VectorQuantizer(4, codebook="gradient")
KEYS = {"params": KEY, "quantizer": KEY}


def create(quantizer, z=Z):
    return quantizer.init(KEYS, z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grouped(MultiScaleVQ(VectorQuantizer(5), scales=(1, 2)), 2),
            r"quantizer must be a quantizer of single vectors, .*, got MultiScaleVQ",
        ),
        (lambda: LearnedAffine(-1.0), "learning_rate_scale must be a finite number above 0, got -1.0"),
        (lambda: RunningAffine(2.0), r"token_decay must be a number in \[0, 1\), got 2.0"),
        (lambda: ImplicitCodebook(-1), "depth must be a positive integer, got -1"),
        (lambda: ProductVQ(4, heads=1), "heads must be at least 2 with separate_codebooks=True, got 1"),
        (lambda: FSP((4, 4), activation="tan"), "activation must be one of .*, got 'tan'"),
        (lambda: MultiScaleVQ(VectorQuantizer(4), scales=(1, 2), spatial_dims=4), r"spatial_dims must be .*, got 4"),
    ],
)
def test_arguments_are_refused_at_construction(make, message):
    with pytest.raises(UserError, match=message):
        make()


# Of another type than annotated, which the type checks of the tests would refuse first.
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualVQ(256, 2), "quantizer must be a quantizer whose output approximates its input, .* got 256"),
        (
            lambda: Grouped(LinearTransform(), 2),
            r"quantizer must be a quantizer of single vectors, .*, got LinearTransform\(\.\.\.\)",
        ),
        (
            lambda: ResidualVQ(LEARNED, 2, implicit_codebooks=LinearTransform()),
            "implicit_codebooks must be .*, got Lin",
        ),
        (lambda: MultiScaleVQ(FSQ((4, 4)), scales=(1, 2)), r"quantizer must be a VectorQuantizer\(\.\.\.\), got FSQ"),
        (lambda: VectorQuantizer(4, regularizers=(0.1,)), "regularizers must be a tuple of regularizers"),
        (lambda: ResidualVQ(LEARNED, 2, implicit_codebooks=True), "implicit_codebooks must be .*, got True"),
        (lambda: VectorQuantizer(4, regularizers=Diversity(0.1)), "regularizers must be a tuple .*, got Diversity"),
        (lambda: FrozenCodebook(transform="linear"), "transform must be a Flax module, or None, got 'linear'"),
        (lambda: FrozenCodebook(LinearTransform), "got <class .*; pass an instance such as LinearTransform"),
        (lambda: VectorQuantizer(4, codebook_init="zeros"), "codebook_init must be an initializer .*, got 'zeros'"),
        (
            lambda: VectorQuantizer(4, separate_codebooks="False"),
            "must be True or False, got 'False'",
        ),
        (lambda: VectorQuantizer(4, axis_name=3), "axis_name must be .*, got 3"),
        (lambda: FSQ((8, 8), hard_clamp="x"), "hard_clamp must be True, False or None, got 'x'"),
        (lambda: Residual(LFQ(4, soft_clamp="x"), 2), "soft_clamp must be at least .*, got 'x'"),
        (lambda: VectorQuantizer(4).init(KEY, [1.0]), "z must be an array, got list"),
        (lambda: VectorQuantizer(4).init(KEY, jnp.ones((2, 3)), True), "mask must be an array, got bool"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(make, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("quantizer", "made_by", "message"),
    [
        (VectorQuantizer(11), VectorQuantizer(5), r"num_codes=11 and one codebook, got shape \(5, 8\)"),
        (
            VectorQuantizer(4, codebook_dim=3),
            VectorQuantizer(4),
            r"codebook_dim=3 and one codebook, got .*\(4, 8\)",
        ),
        (ProductVQ(4), VectorQuantizer(4), "a codebook per head"),
        (RandomProjectionQuantizer(11, 4), RandomProjectionQuantizer(5, 4), "num_codes=11"),
        (LatentQuantizer((8, 8)), LatentQuantizer((5, 5)), "must hold 16 values .*, got 10"),
        (FSQ((5, 5)), FSQ((5, 5, 5)), r"must hold the projection project_out of 2 features, got one of shape"),
    ],
)
def test_variables_of_another_quantizer_are_refused(quantizer, made_by, message):
    indices = jnp.zeros((3, quantizer.num_codebooks) if quantizer.num_codebooks > 1 else 3, jnp.int32)
    with pytest.raises(UserError, match=message):
        quantizer.apply(create(made_by), indices, method="decode")


@pytest.mark.parametrize(
    ("quantizer", "made_by", "message"),
    [
        (
            VectorQuantizer(4, codebook=EMACodebook(replace=Replacement(None, 1))),
            VectorQuantizer(4),
            "must hold the codebook's idle",
        ),
        (
            VectorQuantizer(4, codebook=EMACodebook(accumulation_steps=2)),
            VectorQuantizer(4),
            "hold the codebook's pending_counts",
        ),
        (VectorQuantizer(4), VectorQuantizer(4, codebook="frozen"), "must hold the codebook's counts"),
    ],
)
def test_the_state_of_another_codebook_is_refused_in_training(quantizer, made_by, message):
    with pytest.raises(UserError, match=message):
        quantizer.apply(create(made_by), Z, train=True, mutable=["codebook"], rngs=KEYS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train": False, "method": "assign", "indices": jnp.zeros(3, jnp.int32)},
            r"indices must be integers of shape \[4, 6\], .*int32\[3\]",
        ),
        (
            {"train": False, "code_update_weights": jnp.ones(3)},
            r"code_update_weights must have shape \(5,\), .*, got \(3,\)",
        ),
        ({"method": "kmeans_init", "iterations": -1}, "iterations must be a non-negative integer, got -1"),
    ],
)
def test_arrays_that_do_not_fit_the_tokens_or_the_codes_are_refused(arguments, message):
    vq = VectorQuantizer(5)
    with pytest.raises(UserError, match=message):
        vq.apply(create(vq), Z, **arguments, mutable=["codebook"], rngs=KEYS)


def test_projections_to_other_codes_are_refused_in_the_call():
    with pytest.raises(
        UserError, match="z must have 2 features after the projection in the variables, as the codes have, got 3"
    ):
        FSQ((5, 5)).apply(create(FSQ((5, 5, 5))), Z, train=False)


def test_weights_of_updates_need_a_codebook_that_has_them():
    """Bug: codes learned by gradient moved whatever their weight was."""
    vq = VectorQuantizer(5, codebook=GradientCodebook())
    with pytest.raises(
        UserError, match=r"code_update_weights must be None for GradientCodebook, got .* use EMACodebook"
    ):
        vq.apply(create(vq), Z, train=True, code_update_weights=jnp.ones(5))


@pytest.mark.parametrize("quantizer", [VectorQuantizer(11), ResidualVQ(VectorQuantizer(11), 1), FSQ((5, 5)), LFQ(4)])
@pytest.mark.parametrize("index", [2**32, 2**32 - 1, 2**40, -(2**32)])
def test_indices_beyond_32_bits_do_not_exist(quantizer, index):
    shape = (1, 1) if isinstance(quantizer, ResidualVQ) else (1,)
    decoded = quantizer.apply(create(quantizer), np.full(shape, index), method="decode")
    assert np.all(np.isnan(decoded))


def test_the_largest_unsigned_index_is_not_a_masked_token():
    vq = VectorQuantizer(11)
    assert np.all(np.isnan(vq.apply(create(vq), jnp.array([2**32 - 1], jnp.uint32), method="decode")))


@pytest.mark.parametrize(
    "quantizer", [LFQ(4), BSQ(4), Residual(LFQ(4), 2), FSP((4, 4)), FSQ((5, 5)), VectorQuantizer(4)]
)
def test_an_empty_batch_stays_empty(quantizer):
    out = quantizer.apply(create(quantizer), jnp.zeros((2, 0, 8)), train=False)
    assert out.quantized.shape == (2, 0, 8)
    assert np.isfinite(out.loss)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantizer(11, codebook=EMACodebook(decay=0)),
        lambda: ProductVQ(11, codebook=EMACodebook(decay=np.float32(0.5))),
        lambda: FSP((8, 8), quantize_rate=0),
        lambda: FSQ((8, 8), noise_dropout=1, bound="symmetric"),
        lambda: ResidualVQ(VectorQuantizer(4), 2, dropout=1),
    ],
)
def test_whole_and_numpy_numbers_are_numbers(make, as_users_run_it):
    quantizer = make()
    out, _ = quantizer.apply(create(quantizer), Z, train=True, mutable=["codebook"], rngs=KEYS)
    assert out.quantized.shape == Z.shape


def test_small_integers_of_numpy_do_not_overflow(as_users_run_it):
    assert BinaryMapper(np.int8(8)).num_codes == Residual(LFQ(np.int8(8)), 2).num_codes == 256


@pytest.mark.full
def test_a_quantizer_of_maps_is_an_nnx_module():
    module = MultiScaleVQ(VectorQuantizer(5), scales=(1,), phi_weight=None)
    quantizer = vqjax.nnx.Quantizer(module, dim=8, rngs=nnx.Rngs(0))
    assert quantizer(jax.numpy.ones((2, 4, 4, 8)), train=False).quantized.shape == (2, 4, 4, 8)


@pytest.mark.parametrize(
    ("base", "method"),
    [(Quantizer, "decode"), (GridQuantizer, "radices"), (BaseCodebook, "restart"), (Metric, "compute")],
)
def test_a_subclass_without_a_method_is_refused_when_it_is_built(base, method):
    with pytest.raises(TypeError, match=method):
        type("Unfinished", (base,), {})()


def test_a_codebook_that_tracks_usage_has_to_say_how():
    class Unfinished(BaseCodebook):
        def restart(self, variables, clusters):
            return variables

    with pytest.raises(NotImplementedError, match="Unfinished tracks usage and must implement update"):
        Unfinished().update({}, Assignment(jnp.zeros(2), jnp.zeros((2, 1))), unit_norm=False)


@pytest.mark.parametrize(
    "quantizer", [FSQ((4, 4)), LFQ(4, num_codebooks=2), ProductVQ(4, heads=2), Grouped(VectorQuantizer(4), 2)]
)
def test_indices_that_are_no_array_are_refused(quantizer, as_users_run_it):
    variables = quantizer.init(
        {"params": KEY, "quantizer": KEY}, jnp.zeros((1, 8 if not isinstance(quantizer, FSQ) else 2))
    )
    for indices in ([1, 2], 5):
        with pytest.raises(UserError, match="indices must be an array of integers, as encode returns them, got "):
            quantizer.apply(variables, indices, method="decode")


def test_wrong_indices_of_64_bits_decode_to_nan():
    """Bug: JAX cut them to 32 bits, and made valid ones of them."""
    wrong = np.array([[2**32, 2**32 + 3]])
    assert bool(jnp.all(jnp.isnan(Grouped(FSQ((8, 5, 5)), 2).apply({}, wrong, method="decode"))))


def test_numbers_of_numpy_are_those_of_python(as_users_run_it):
    """Bugs: integers passed the constructor and failed in the call, a false one was true, and float64 widened state."""
    quantizer = ResidualVQ(VectorQuantizer(8, codebook_shards=np.int64(2)), 2, beam_size=np.int64(2))
    quantizer.init(KEY, Z)
    assert FSQ((4, 4), hard_clamp=np.False_).at_stage(0).hard_clamp is False
    assert type(EMACodebook(decay=np.float64(0.9)).decay) is float
    assert type(VectorQuantizer(8, commitment_weight=np.float64(0.5)).commitment_weight) is float
