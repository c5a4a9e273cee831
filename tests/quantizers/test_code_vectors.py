"""The codes that a quantizer looks up, through every kind of codebook, in linen and NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
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
    Residual,
    RunningAffine,
    SimVQ,
    UserError,
    VectorQuantizer,
)

DIM, CODES = 4, 6
KEY = jax.random.key(0)
# One codebook, in the space of the input: `decode` of all indices gives the same numbers.
PLAIN = {
    "ema": VectorQuantizer(CODES),
    "gradient": VectorQuantizer(CODES, codebook="gradient"),
    "cosine": VectorQuantizer(CODES, codebook="gradient", distance="cosine"),
    "linear": VectorQuantizer(CODES, codebook=FrozenCodebook(transform=LinearTransform())),
    "affine": VectorQuantizer(CODES, codebook=GradientCodebook(transform=LearnedAffine(2.0))),
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
