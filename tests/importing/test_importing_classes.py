"""Whole classes of vector-quantize-pytorch, from state dicts built here: what is refused, and by which name."""

import jax
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
from vqjax import Residual, UserError
from vqjax.importing import vector_quantize_pytorch

DIM, CODES, STAGES = 4, 6, 2
VQ = {"dim": DIM, "codebook_size": CODES}
RVQ = VQ | {"num_quantizers": STAGES}
FSQ = {"levels": [5, 4, 3]}
LFQ = {"dim": DIM, "codebook_size": 2**DIM}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def codebook(prefix="", seed=0):
    codes = random(1, CODES, DIM, seed=seed)
    state = {"embed": codes, "embed_avg": codes, "cluster_size": np.ones((1, CODES), np.float32)}
    return {f"{prefix}_codebook.{name}": value for name, value in (state | {"initted": np.array(True)}).items()}


def stages(prefix="", count=STAGES, same=False):
    return {
        key: value for i in range(count) for key, value in codebook(f"{prefix}layers.{i}.", 0 if same else i).items()
    }


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


def test_stages_become_stages():
    rvq, variables = vector_quantize_pytorch(stages(), RVQ, "ResidualVQ")
    assert isinstance(rvq, Residual)
    for stage in range(STAGES):
        codes = variables["codebook"][f"stages_{stage}"]["codes"]
        np.testing.assert_array_equal(codes, stages()[f"layers.{stage}._codebook.embed"][0])


@pytest.mark.full
def test_an_imported_module_goes_on_in_nnx():
    rvq, variables = vector_quantize_pytorch(stages(), RVQ, "ResidualVQ")
    z = jax.numpy.asarray(random(7, DIM, seed=9))
    model = vqjax.nnx.Quantizer(rvq, dim=DIM, rngs=nnx.Rngs(0), variables=variables)
    np.testing.assert_array_equal(model.encode(z), rvq.apply(variables, z, method="encode"))
    fsq, variables = vector_quantize_pytorch({}, FSQ, "FSQ")
    model = vqjax.nnx.Quantizer(fsq, dim=3, rngs=nnx.Rngs(0), variables=variables)
    np.testing.assert_array_equal(model.encode(z[:, :3]), fsq.apply({}, z[:, :3], method="encode"))


def test_codes_are_drawn_in_training_where_they_were_there():
    config = RVQ | {"stochastic_sample_codes": True, "sample_codebook_temp": 0.1, "shared_codebook": True}
    state = stages(same=True)
    assert vector_quantize_pytorch(state, config, "ResidualVQ")[0].quantizer.sampling_temperature == 0.1
    for off in ({"sample_codebook_temp": 0.0}, {"stochastic_sample_codes": False}):
        assert vector_quantize_pytorch(state, config | off, "ResidualVQ")[0].quantizer.sampling_temperature is None


def test_lists_of_a_json_file_are_taken_for_tuples():
    config = {"dim": DIM, "codebook_size": [CODES] * STAGES}
    rvq, _ = vector_quantize_pytorch(stages(), config, "ResidualVQ")
    assert hash(rvq) == hash(vector_quantize_pytorch(stages(), RVQ, "ResidualVQ")[0])


MISTAKES = {
    "class": ("ResidualQV", RVQ, stages(), "class_name must be .*, got 'ResidualQV'; did you mean 'ResidualVQ'"),
    "no name": (["VectorQuantize"], VQ, {}, "class_name must be .*, got \\['VectorQuantize'\\]"),
    "text for a number": (
        "LatentQuantize",
        {"levels": 8, "dim": 2, "codebook_dim": "2"},
        {},
        "config must be .* TypeError",
    ),
    "evolution": ("EvoLFQ", LFQ, {}, "class_name must be .*, got 'EvoLFQ'"),
    "forgotten class": (
        "VectorQuantize",
        VQ,
        stages(),
        "or name the class of all, such as vector_quantize_pytorch\\(arrays, config, 'ResidualVQ'\\)",
    ),
    "argument": (
        "ResidualVQ",
        RVQ | {"num_quantizer": 2},
        stages(),
        "of a ResidualVQ, got 'num_quantizer'; did you mean",
    ),
    "missing": (
        "ResidualVQ",
        RVQ,
        without(stages(), "layers.1._codebook.embed_avg"),
        "missing \\['layers.1._codebook.embed_avg'\\] and surplus \\[\\]",
    ),
    "one more stage": ("ResidualVQ", RVQ, stages(count=3), "surplus \\['layers.2._codebook.cluster_size'"),
    "one stage less": ("ResidualVQ", RVQ | {"num_quantizers": 3}, stages(), "entry 'layers.2._codebook.embed'"),
    "one group more": (
        "GroupedResidualVQ",
        RVQ | {"dim": 2 * DIM, "groups": 2},
        stages("rvqs.0.") | stages("rvqs.1.") | stages("rvqs.2."),
        "surplus \\['rvqs.2.layers.0._codebook.cluster_size'",
    ),
    "shape": (
        "GroupedResidualVQ",
        RVQ | {"dim": 2 * DIM, "groups": 2, "codebook_size": 5},
        stages("rvqs.0.") | stages("rvqs.1."),
        "rvqs.0.layers.0._codebook.cluster_size must have shape \\[1, 5\\], got \\[1, 6\\]",
    ),
    "groups": ("GroupedResidualVQ", RVQ | {"groups": 3}, {}, "config\\['groups'\\] must be a divisor of dim=4, got 3"),
    "shared": (
        "ResidualVQ",
        RVQ | {"shared_codebook": True},
        stages(),
        "layers.1._codebook.embed must equal layers.0._codebook.embed with shared_codebook=True",
    ),
    "projection": (
        "ResidualVQ",
        RVQ | {"codebook_dim": 3},
        stages(),
        "must have shape \\[1, 6, 3\\], got \\[1, 6, 4\\]",
    ),
    "network": (
        "ResidualVQ",
        RVQ | {"implicit_neural_codebook": True},
        stages(),
        "missing \\['mlps.0.layers.0.0.bias'",
    ),
    "beam": (
        "ResidualVQ",
        RVQ | {"beam_size": 4},
        stages(),
        "\\['beam_size'\\] must be None, got 4; .*set beam_size in a",
    ),
    "diveq": ("ResidualVQ", RVQ | {"diveq": True}, stages(), "config\\['diveq'\\] must be off, got True"),
    "heads": ("ResidualVQ", RVQ | {"heads": 2}, stages(), "config\\['heads'\\] must be 1 in a ResidualVQ, got 2"),
    "no count": ("ResidualVQ", VQ, stages(), "config\\['num_quantizers'\\] must be a positive integer, got None"),
    "sizes": (
        "ResidualVQ",
        RVQ | {"codebook_size": (6, 6, 6)},
        stages(),
        "config\\['codebook_size'\\] must be 2 numbers, one for each stage, got \\(6, 6, 6\\)",
    ),
    "waiting for k-means": (
        "ResidualVQ",
        RVQ,
        stages() | {"layers.1._codebook.initted": np.array(False)},
        "layers.1._codebook.initted must be True",
    ),
    "padding": (
        "ResidualVQ",
        RVQ | {"return_zeros_for_masked_padding": False},
        stages(),
        "config\\['return_zeros_for_masked_padding'\\] must be on, got False",
    ),
    "transform": ("SimVQ", VQ | {"codebook_transform": object()}, {}, "config\\['codebook_transform'\\] must be off"),
    "frozen codes": (
        "SimVQ",
        VQ | {"frozen_codebook_dim": 2},
        {},
        "config\\['frozen_codebook_dim'\\] must be None, or",
    ),
    "random codebooks": (
        "RandomProjectionQuantizer",
        VQ | {"codebook_dim": 2, "num_codebooks": 2},
        {},
        "config\\['num_codebooks'\\] must be 1, got 2; several codebooks lie behind a linear layer",
    ),
    "levels": ("FSQ", {"levels": 5}, {}, "config\\['levels'\\] must be a list of integers"),
    "surplus": ("FSQ", FSQ, {"project_in.weight": random(3, 6)}, "surplus \\['project_in.weight'\\]"),
    "rotation in stages": (
        "ResidualFSQ",
        FSQ | {"num_quantizers": 2, "orthogonal_rotation": True},
        {},
        "config\\['orthogonal_rotation'\\] must be off, got True",
    ),
    "clamps": (
        "ResidualFSQ",
        FSQ | {"num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": [1.0, 2.0, 1.0]},
        {},
        "\\['soft_clamp_input_value'\\] must be the same for all features, got \\[1.0, 2.0, 1.0\\]",
    ),
    "size of bits": ("LFQ", {"codebook_size": 12}, {}, "config\\['codebook_size'\\] must be a power of two, got 12"),
    "cosine projection": (
        "LFQ",
        LFQ | {"cosine_sim_project_in": True},
        {},
        "\\['cosine_sim_project_in'\\] must be off",
    ),
    "projection of nothing": (
        "LFQ",
        LFQ | {"has_projections": True},
        {"mask": 2 ** np.arange(DIM)},
        "config\\['has_projections'\\] must be False, or left out, got True; vqjax has linear maps only if",
    ),
    "softplus": (
        "ResidualLFQ",
        LFQ | {"num_quantizers": 2, "experimental_softplus_entropy_loss": True},
        {},
        "config\\['experimental_softplus_entropy_loss'\\] must be off",
    ),
    "norm": ("FSP", FSQ | {"vector_norm": "skew"}, {}, "config\\['vector_norm'\\] must be one of 'none', 'var'"),
    "optimizer": (
        "LatentQuantize",
        FSQ | {"dim": 3, "in_place_codebook_optimizer": object()},
        {},
        "config\\['in_place_codebook_optimizer'\\] must be off",
    ),
    "values": (
        "LatentQuantize",
        FSQ | {"dim": 3},
        {f"values_per_latent.{i}": random(5) for i in range(3)},
        "values_per_latent.1 must have shape \\[4\\], got \\[5\\]; values_per_latent.2 must have",
    ),
    "scales of their own size": (
        "HierarchicalVQ",
        {"dim": DIM, "codebook_size": (4, 6), "scales": [1, 2], "shared_codebook": False},
        {},
        "config\\['codebook_size'\\] must be the same for all scales, got \\(4, 6\\)",
    ),
    "config": ("ResidualVQ", 3, stages(), "config must be a mapping of argument names to values, got 3"),
}


@pytest.mark.parametrize(("class_name", "config", "state", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_refused(class_name, config, state, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        vector_quantize_pytorch(state, config, class_name)


def test_every_argument_of_their_constructors_is_decided_on():
    """The arguments of 1.32, from its source: a name that is missing would be refused as a misspelling."""
    given = {
        "ResidualVQ": RVQ
        | {"quantize_dropout": False, "accept_image_fmap": True, "return_zeros_for_masked_padding": True},
        "FSQ": FSQ
        | {"keep_num_codebooks_dim": None, "scale": None, "allowed_dtypes": (), "channel_first": False}
        | {"return_indices": True, "force_quantization_f32": True},
        "LFQ": LFQ | {"straight_through_activation": None, "frac_per_sample_entropy": 1.0, "channel_first": None},
    }
    states = {"ResidualVQ": stages(), "FSQ": {}, "LFQ": {"mask": 2 ** np.arange(DIM)}}
    for class_name, config in given.items():
        quantizer, variables = vector_quantize_pytorch(states[class_name], config, class_name)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables)), quantizer
