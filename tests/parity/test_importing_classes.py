"""Every class of vector-quantize-pytorch 1.32, trained there for some batches, gives the same numbers here."""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vqjax import BSQ, LFQ, Grouped, MultiScaleVQ, Residual, UserError, importing
from vqjax.importing.vector_quantize_pytorch.importer import CLASSES

torch = pytest.importorskip("torch")
peer = pytest.importorskip("vector_quantize_pytorch")

DIM, CODES, BATCH = 6, 16, (3, 40)
VQ = {"dim": DIM, "codebook_size": CODES}
RVQ = VQ | {"num_quantizers": 3}
FSQ = {"levels": [5, 4, 3]}
# Outputs agree to this, and indices are the same; losses to 1e-5 of their size.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

CASES = {
    "VectorQuantize": ("VectorQuantize", VQ),
    "ResidualVQ": ("ResidualVQ", RVQ),
    "ResidualVQ, projected": ("ResidualVQ", RVQ | {"codebook_dim": 4, "decay": 0.9}),
    "ResidualVQ, sizes": ("ResidualVQ", {"dim": DIM, "codebook_size": (16, 8, 4)}),
    "ResidualVQ, shared": ("ResidualVQ", RVQ | {"shared_codebook": True}),
    "ResidualVQ, cosine": ("ResidualVQ", RVQ | {"use_cosine_sim": True}),
    "ResidualVQ, learned": ("ResidualVQ", RVQ | {"learnable_codebook": True, "ema_update": False}),
    "ResidualVQ, started": ("ResidualVQ", RVQ | {"kmeans_init": True, "threshold_ema_dead_code": 0.1}),
    "ResidualVQ, dropout": ("ResidualVQ", RVQ | {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1}),
    "ResidualVQ, drawn": (
        "ResidualVQ",
        RVQ | {"stochastic_sample_codes": True, "sample_codebook_temp": 0.1, "shared_codebook": True},
    ),
    "ResidualVQ, implicit": ("ResidualVQ", RVQ | {"implicit_neural_codebook": True}),
    "ResidualVQ, other network": (
        "ResidualVQ",
        RVQ | {"implicit_neural_codebook": True, "mlp_kwargs": {"dim_hidden": 9, "depth": 2}},
    ),
    "GroupedResidualVQ": ("GroupedResidualVQ", RVQ | {"groups": 2, "accept_image_fmap": False}),
    "GroupedResidualVQ, projected": ("GroupedResidualVQ", RVQ | {"groups": 3, "codebook_dim": 4}),
    "SimVQ": ("SimVQ", VQ),
    "SimVQ, weighted": (
        "SimVQ",
        VQ | {"rotation_trick": False, "commitment_weight": 0.5, "input_to_quantize_commit_loss_weight": 0.1},
    ),
    "ResidualSimVQ": ("ResidualSimVQ", RVQ),
    "RandomProjectionQuantizer": ("RandomProjectionQuantizer", VQ | {"codebook_dim": 4}),
    "RandomProjectionQuantizer, as it is": ("RandomProjectionQuantizer", VQ | {"codebook_dim": 4, "norm": False}),
    "FSQ": ("FSQ", FSQ),
    "FSQ, projected": ("FSQ", FSQ | {"dim": DIM, "num_codebooks": 1}),
    "FSQ, no bias": ("FSQ", FSQ | {"dim": DIM, "projection_has_bias": False}),
    "FSQ, codebooks": ("FSQ", FSQ | {"num_codebooks": 2}),
    "FSQ, symmetric": ("FSQ", {"levels": [3, 2, 5], "preserve_symmetry": True, "bound_hard_clamp": True}),
    "FSQ, rotated": ("FSQ", {"levels": [5, 5, 5], "dim": DIM, "orthogonal_rotation": True}),
    "ResidualFSQ": ("ResidualFSQ", FSQ | {"num_quantizers": 3}),
    "ResidualFSQ, projected": ("ResidualFSQ", FSQ | {"num_quantizers": 3, "dim": DIM, "quantize_dropout": True}),
    "ResidualFSQ, soft": (
        "ResidualFSQ",
        FSQ | {"num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": 1.5},
    ),
    "GroupedResidualFSQ": ("GroupedResidualFSQ", {"levels": [5, 4, 3], "num_quantizers": 2, "dim": DIM, "groups": 2}),
    "FSP": ("FSP", FSQ),
    "FSP, projected": ("FSP", FSQ | {"dim": DIM, "act_name": "laplace", "need_inv_act": True, "vector_norm": "kurt"}),
    "LFQ": ("LFQ", {"codebook_size": 64}),
    "LFQ, by its features": ("LFQ", {"dim": 6}),
    "LFQ, projected": (
        "LFQ",
        {"dim": DIM, "codebook_size": 16, "entropy_loss_weight": 0.3, "diversity_gamma": 2.0, "codebook_scale": 0.5}
        | {"commitment_loss_weight": 0.25, "soft_clamp_input_value": 1.5, "orthogonal_rotation": True},
    ),
    "LFQ, codebooks": ("LFQ", {"codebook_size": 8, "num_codebooks": 2, "projection_has_bias": False}),
    "LFQ, spherical": ("LFQ", {"codebook_size": 64, "spherical": True}),
    "ResidualLFQ": ("ResidualLFQ", {"dim": DIM, "codebook_size": 16, "num_quantizers": 3}),
    "ResidualLFQ, every option": (
        "ResidualLFQ",
        {"dim": DIM, "codebook_size": 64, "num_quantizers": 2, "soft_clamp_input_value": 2.0, "spherical": True}
        | {"orthogonal_rotation": True, "commitment_loss_weight": 0.1},
    ),
    "GroupedResidualLFQ": ("GroupedResidualLFQ", {"dim": 6, "codebook_size": 8, "num_quantizers": 2, "groups": 2}),
    "LatentQuantize": ("LatentQuantize", {"levels": [5, 4, 3], "dim": 3}),
    "LatentQuantize, projected": ("LatentQuantize", {"levels": [5, 4, 3], "dim": DIM, "num_codebooks": 1}),
    "LatentQuantize, codebooks": ("LatentQuantize", {"levels": 4, "codebook_dim": 3, "dim": 6, "num_codebooks": 2}),
    "LatentQuantize, fixed": ("LatentQuantize", {"levels": [5, 4, 3], "dim": 3, "optimize_values": False}),
    "BinaryMapper": ("BinaryMapper", {"bits": 4, "deterministic_on_eval": True}),
}
# Classes whose input has its features on the second axis.
CHANNELS_FIRST = {"LatentQuantize"}


def features_of(config):
    if "dim" in config:
        return config["dim"]
    number = config.get("num_codebooks", 1)
    if "levels" in config:
        return len(config["levels"]) * number
    return config["bits"] if "bits" in config else (config["codebook_size"].bit_length() - 1) * number


def batch(config, seed):
    return np.random.default_rng(seed).normal(size=(*BATCH, features_of(config))).astype(np.float32)


def state_of(module):
    return {key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}


def run(class_name, module, z):
    """Returns the codes, the indices in our order of axes, and the sum of the losses."""
    x = torch.tensor(z)
    if class_name in CHANNELS_FIRST:
        quantized, indices, loss = module(x.movedim(-1, 1))
        return quantized.movedim(1, -1), indices, loss
    if class_name == "RandomProjectionQuantizer":
        return None, module(x), None
    out = module(x, return_indices=True) if class_name == "BinaryMapper" else module(x)
    quantized, indices, *loss = out
    if class_name.startswith("Grouped"):
        indices = indices.movedim(0, -2)
    return quantized, indices, loss[0].sum() if loss else None


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A trained module there, the same here, and a batch."""
    class_name, config = CASES[request.param]
    torch.manual_seed(0)
    module = getattr(peer, class_name)(**config).train()
    with torch.no_grad():
        for seed in range(3):
            run(class_name, module, batch(config, seed))
    ours, variables = importing.vector_quantize_pytorch(state_of(module), config, class_name)
    return class_name, config, module, ours, variables, batch(config, 9)


def test_codes_and_indices_are_the_same_in_evaluation(case):
    class_name, _, module, ours, variables, z = case
    quantized, indices, _ = run(class_name, copy.deepcopy(module).eval(), z)
    out = ours.apply(variables, jnp.asarray(z), train=False)
    np.testing.assert_array_equal(out.indices, indices)
    if quantized is not None:
        np.testing.assert_allclose(out.quantized, quantized.detach().numpy(), **TOLERANCE)
    decoded = ours.apply(variables, jnp.asarray(indices.numpy()), method="decode")
    np.testing.assert_allclose(decoded, out.quantized, **TOLERANCE)


# Losses in training, for classes that have one. That of a learned codebook is half of ours, which adds two equal terms.
TIMES = {"ResidualVQ, learned": 2, "ResidualVQ, implicit": 2, "ResidualVQ, other network": 2}
# Projections: there the loss of the input and the output around them, here of features and values between them.
OTHER_LOSS = {"LatentQuantize, projected"}
RANDOM = {"ResidualVQ, drawn", "ResidualVQ, dropout", "ResidualFSQ, projected", "BinaryMapper"}


def with_their_floor(quantizer):
    """Their entropies, whose probabilities are at least 1e-5 within a logarithm."""
    if isinstance(quantizer, LFQ | BSQ):
        return quantizer.clone(smallest_probability=1e-5)
    return quantizer.clone(quantizer=with_their_floor(quantizer.quantizer))


def test_losses_are_the_same(case, request):
    class_name, config, module, ours, variables, z = case
    name = request.node.callspec.params["case"]
    if name in RANDOM | OTHER_LOSS:
        pytest.skip("drawn at random, or measured elsewhere")
    _, _, loss = run(class_name, copy.deepcopy(module).train(), z)
    if loss is None:
        pytest.skip("there is none")
    exact = float(ours.apply(variables, jnp.asarray(z), train=False).loss)
    if "LFQ" in class_name:
        # Their floor takes at most 1e-5/e from the entropy for each code, stage and group.
        bits = config.get("codebook_size", 2 ** config.get("dim", 0)) * 1e-5 / np.e
        codebooks = config.get("num_quantizers", 1) * config.get("groups", 1)
        np.testing.assert_allclose(exact, loss.item(), rtol=1e-4, atol=2 * bits * codebooks)
        ours = with_their_floor(ours)
    loss_here = ours.apply(variables, jnp.asarray(z), train=False).loss
    np.testing.assert_allclose(loss_here, TIMES.get(name, 1) * loss.item(), rtol=1e-5, atol=1e-6)


def test_variables_are_those_of_init(case):
    *_, ours, variables, z = case
    keys = {"params": jax.random.key(0), "quantizer": jax.random.key(1)}
    fresh = jax.eval_shape(ours.init, keys, jnp.asarray(z))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(variables) == describe(fresh)


@pytest.mark.parametrize("name", ["ResidualVQ", "GroupedResidualVQ"])
def test_training_continues_here_as_it_would_have_there(name):
    class_name, config = CASES[name]
    torch.manual_seed(0)
    module = getattr(peer, class_name)(**config).train()
    ours, variables = importing.vector_quantize_pytorch(state_of(module), config, class_name)
    step = jax.jit(lambda variables, z: ours.apply(variables, z, train=True, mutable=["codebook"]))
    for seed in range(3):
        z = batch(config, seed)
        quantized, indices, loss = run(class_name, module, z)
        out, updates = step(variables, jnp.asarray(z))
        variables = variables | updates
        np.testing.assert_array_equal(out.indices, indices)
        np.testing.assert_allclose(out.quantized, quantized.detach().numpy(), **TOLERANCE)
        np.testing.assert_allclose(out.loss, loss.item(), rtol=1e-5)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize(("shared", "share_quant_resi"), [(True, 1), (False, 2), (True, 0)])
def test_hierarchical_vq(spatial_dims, shared, share_quant_resi):
    layout = {"accept_image_fmap": spatial_dims == 2, "accept_3d_fmap": spatial_dims == 3}
    config = {"dim": DIM, "codebook_size": CODES, "scales": [1, 2, 4], "kmeans_init": False} | layout
    config |= {"threshold_ema_dead_code": 0, "shared_codebook": shared, "share_quant_resi": share_quant_resi}
    config["quant_resi"] = 0.0 if share_quant_resi == 0 else 0.5
    torch.manual_seed(0)
    module = peer.HierarchicalVQ(**config).train()
    z = np.random.default_rng(0).normal(size=(2, *(6, 5, 4)[:spatial_dims], DIM)).astype(np.float32)
    x = torch.tensor(z).movedim(-1, 1)
    with torch.no_grad():
        module(x)
    ours, variables = importing.vector_quantize_pytorch(state_of(module), config, "HierarchicalVQ")
    quantized, indices, _ = module.eval()(x)
    out = ours.apply(variables, jnp.asarray(z), train=False)
    np.testing.assert_array_equal(out.indices, np.concatenate([i.numpy().reshape(2, -1) for i in indices], axis=-1))
    np.testing.assert_allclose(out.quantized, quantized.detach().movedim(1, -1).numpy(), **TOLERANCE)
    assert isinstance(ours, MultiScaleVQ)


def test_affine_statistics_of_stages_arrive():
    config = RVQ | {"affine_param": True}
    torch.manual_seed(0)
    module = peer.ResidualVQ(**config).train()
    with torch.no_grad():
        for seed in range(3):
            module(torch.tensor(batch(config, seed)))
    ours, variables = importing.vector_quantize_pytorch(state_of(module), config, "ResidualVQ")
    module.eval()
    for layer in module.layers:
        # There, evaluation moves the statistics before the lookup (a defect).
        layer._codebook.affine_param_batch_decay = 1.0
    z = batch(config, 9)
    quantized, indices, _ = module(torch.tensor(z))
    out = ours.apply(variables, jnp.asarray(z), train=False)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.quantized, quantized.detach().numpy(), **TOLERANCE)


def test_a_file_without_the_repeated_tensors_of_a_shared_codebook(tmp_path):
    class_name, config = CASES["ResidualVQ, shared"]
    module = getattr(peer, class_name)(**config)
    state = {key: value for key, value in state_of(module).items() if not key.startswith(("layers.1.", "layers.2."))}
    save_file(state, tmp_path / "quantizer.safetensors")
    ours, variables = importing.vector_quantize_pytorch(tmp_path / "quantizer.safetensors", config, class_name)
    whole = importing.vector_quantize_pytorch(state_of(module), config, class_name)[1]
    jax.tree.map(np.testing.assert_array_equal, variables, whole)
    assert isinstance(ours, Residual)


def test_every_class_is_imported_or_named_in_the_documentation():
    classes = {name for name in dir(peer) if isinstance(getattr(peer, name), type)}
    known = set(CLASSES)
    assert classes - known == {"EvoLFQ", "Sequential"}
    assert known <= classes
    covered = {class_name for class_name, _ in CASES.values()} | {"HierarchicalVQ"}
    assert covered == known


@pytest.mark.parametrize("class_name", [name for name in CLASSES if not name.startswith("Grouped")])
def test_every_argument_of_its_constructor_is_decided_on(class_name):
    required = {"levels": [3, 3], "dim": 4, "codebook_size": 4, "scales": [1], "num_quantizers": 2, "codebook_dim": 2}
    takes = inspect.signature(getattr(peer, class_name).__init__).parameters
    takes = [p for p in takes.values() if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]
    config = {p.name: required.get(p.name) if p.default is inspect.Parameter.empty else p.default for p in takes}
    config |= {name: required[name] for name in ("dim", "num_quantizers") if name in config}
    # A module by default, which no file of arguments could hold.
    config.pop("straight_through_activation", None)
    refusal = ""
    try:
        importing.vector_quantize_pytorch({}, config, class_name)
    except UserError as error:
        refusal = str(error)
    assert refusal == "" or refusal.startswith("arrays must have"), refusal


def test_groups_are_an_axis_of_the_indices():
    class_name, config = CASES["GroupedResidualVQ"]
    module = getattr(peer, class_name)(**config).eval()
    ours, variables = importing.vector_quantize_pytorch(state_of(module), config, class_name)
    assert isinstance(ours, Grouped)
    assert ours.apply(variables, jnp.zeros((*BATCH, DIM)), method="encode").shape == (*BATCH, 2, 3)
