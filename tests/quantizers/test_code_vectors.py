"""The codes that a quantizer looks up, through every kind of codebook, in linen and NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
from helpers.arrays import gaussian
from vqjax import (
    BSQ,
    FSP,
    FSQ,
    IBQ,
    LFQ,
    BinaryMapper,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    Grouped,
    ImplicitCodebook,
    LatentQuantizer,
    LearnedAffine,
    LinearTransform,
    MultiScaleVQ,
    ProductVQ,
    RandomProjectionQuantizer,
    Replacement,
    Residual,
    RunningAffine,
    SimVQ,
    UserError,
    VectorQuantizer,
    VQBridge,
)
from vqjax.functional import Diversity, Orthogonality

DIM, CODES = 4, 6
KEY = jax.random.key(0)
# One codebook, in the space of the input: `decode` of all indices gives the same numbers.
PLAIN = {
    "ema": VectorQuantizer(CODES),
    "gradient": VectorQuantizer(CODES, codebook="gradient"),
    "cosine": VectorQuantizer(CODES, codebook="gradient", distance="cosine"),
    "linear": VectorQuantizer(CODES, codebook=FrozenCodebook(transform=LinearTransform())),
    "affine": VectorQuantizer(CODES, codebook=GradientCodebook(transform=LearnedAffine(2.0))),
    "bridge": VectorQuantizer(CODES, codebook=GradientCodebook(transform=VQBridge(1, heads=2, width=4))),
    "running": VectorQuantizer(CODES, codebook=EMACodebook(transform=RunningAffine())),
    "sim_vq": SimVQ(CODES),
    "ibq": IBQ(CODES),
    "random": RandomProjectionQuantizer(CODES, codebook_dim=3),
    "fsq": FSQ((3, 4, 5, 3)),
    "rotated": FSQ((3, 3, 3, 3), orthogonal_rotation=True),
    "fsp": FSP((3, 3, 2, 2)),
    "latent": LatentQuantizer((3, 3, 2, 4)),
    "lfq": LFQ(DIM),
    "bsq": BSQ(DIM),
}


def created(quantizer, dim=DIM):
    return jax.jit(quantizer.init)({"params": KEY, "quantizer": KEY}, jnp.ones((2, 3, dim)))


@pytest.mark.parametrize("name", PLAIN)
def test_they_are_the_vectors_of_all_indices(name):
    quantizer, variables = PLAIN[name], created(PLAIN[name])
    codes = quantizer.apply(variables, method="code_vectors")
    assert codes.shape[0] == quantizer.num_codes
    decoded = quantizer.apply(variables, jnp.arange(quantizer.num_codes), method="decode")
    np.testing.assert_array_equal(codes, decoded)


@pytest.mark.full
def test_codebooks_of_heads_have_an_axis_and_those_of_stages_groups_and_scales_a_tuple():
    shapes = {
        ProductVQ(CODES, heads=2): (2, CODES, 2),
        VectorQuantizer(CODES, heads=2): (CODES, 2),
        VectorQuantizer(CODES, codebook_dim=3): (CODES, 3),
        Residual(VectorQuantizer(CODES), 2, stage_sizes=(6, 4)): ((6, DIM), (4, DIM)),
        Residual(VectorQuantizer(CODES), 2, shared_codebook=True): ((CODES, DIM), (CODES, DIM)),
        Grouped(Residual(VectorQuantizer(CODES), 2), 2): (((CODES, 2), (CODES, 2)),) * 2,
        MultiScaleVQ(VectorQuantizer(CODES), (1, 2), spatial_dims=1): ((CODES, DIM), (CODES, DIM)),
        FSQ((3, 3), num_codebooks=2): (9, 2),
    }
    for quantizer, shape in shapes.items():
        codes = quantizer.apply(created(quantizer), method="code_vectors")
        assert jax.tree.map(jnp.shape, codes) == shape


def test_stages_of_a_grid_have_their_own_scale():
    first, second = Residual(FSQ((3, 5)), 2).apply({}, method="code_vectors")
    np.testing.assert_allclose(second, np.asarray(first) / [3, 5], rtol=1e-6)


def test_they_carry_the_gradient_to_the_codes():
    # As an output layer whose weights are the codes needs it.
    variables = created(PLAIN["linear"])
    slope = jax.grad(
        lambda params: jnp.sum(PLAIN["linear"].apply(variables | {"params": params}, method="code_vectors"))
    )(variables["params"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slope))


TRANSFORMED = {
    "linear": PLAIN["linear"],
    "sim_vq": SimVQ(CODES, train=True),
    "running": PLAIN["running"],
    "bridge": PLAIN["bridge"],
    "cosine, projected, of heads": ProductVQ(
        CODES,
        distance="cosine",
        codebook_dim=3,
        codebook=GradientCodebook(replace=Replacement(), transform=LearnedAffine(2.0)),
    ),
    "no transform": VectorQuantizer(CODES, codebook="gradient", regularizers=(Orthogonality(0.1), Diversity(0.1))),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_plain_quantizer_has_them_and_gives_the_same_bit_for_bit(name):
    quantizer, z = TRANSFORMED[name], gaussian(2, 3, DIM)
    variables = jax.tree.map(lambda x: x + (0.1 if x.dtype == jnp.float32 else 0), created(quantizer))
    plain, stored = quantizer.without_transform(variables)
    assert type(plain) is VectorQuantizer
    assert plain.codebook == FrozenCodebook()
    assert (plain.estimator, plain.train) == (quantizer.estimator, quantizer.train)
    assert jax.tree.structure(stored) == jax.tree.structure(created(plain))
    indices = quantizer.apply(variables, z, method="encode")
    np.testing.assert_array_equal(plain.apply(stored, z, method="encode"), indices)
    vectors = quantizer.apply(variables, indices, method="decode")
    np.testing.assert_array_equal(plain.apply(stored, indices, method="decode"), vectors)
    train = {} if quantizer.train else {"train": True}
    out, after = plain.apply(stored, z, **train, mutable=["codebook"])
    np.testing.assert_array_equal(out.indices, indices)
    jax.tree.map(np.testing.assert_array_equal, after["codebook"], stored["codebook"])


def test_codes_that_depend_on_a_condition_have_no_plain_quantizer():
    quantizer = VectorQuantizer(CODES, codebook=GradientCodebook(transform=ImplicitCodebook(1, 8)))
    z = jnp.ones((2, DIM))
    variables = quantizer.init(KEY, z, condition=z)
    with pytest.raises(UserError, match="condition must have one vector per token"):
        quantizer.without_transform(variables)


def test_they_are_there_in_nnx():
    vq = vqjax.nnx.Quantizer(PLAIN["cosine"], dim=DIM, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.linalg.norm(vq.code_vectors(), axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (BinaryMapper(4), "BinaryMapper has no codebook to return; decode"),
        (LFQ(21), "num_codes must be at most 1048576 to return all codes, got 2097152; decode"),
        (
            Residual(VectorQuantizer(CODES, codebook="gradient"), 2, implicit_codebooks=ImplicitCodebook(hidden=8)),
            r"implicit_codebooks must be None, got ImplicitCodebook\(...\); the codes of a stage depend on",
        ),
    ],
)
def test_what_has_none_says_so(quantizer, message):
    with pytest.raises(UserError, match=message):
        quantizer.apply({}, method="code_vectors")
