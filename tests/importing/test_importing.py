"""State dicts of vector-quantize-pytorch, built here in NumPy, as variables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.arrays import unit
from helpers.quantizing import CODES, DIM, gaussian, nearest
from vqjax import UserError
from vqjax.importing import vector_quantize_pytorch

HEADS, FEATURES = 3, 5


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def state_dict(codebooks=1, **entries):
    embed = random(codebooks, CODES, DIM)
    counts = np.abs(random(codebooks, CODES, seed=1)) + 0.1
    codebook = {"embed": embed, "embed_avg": embed * counts[..., None], "cluster_size": counts}
    return {f"_codebook.{name}": value for name, value in codebook.items()} | {
        "_codebook.initted": np.array(True),
        **entries,
    }


def projections(inner):
    return {
        "project_in.weight": random(inner, FEATURES, seed=2),
        "project_in.bias": random(inner, seed=3),
        "project_out.weight": random(FEATURES, inner, seed=4),
        "project_out.bias": random(FEATURES, seed=5),
    }


def statistics(needs_init=False, codebooks=1):
    entries = {
        "codebook_mean_needs_init": np.array(needs_init),
        "codebook_variance_needs_init": np.array(needs_init),
        "codebook_mean": random(codebooks, 1, DIM, seed=6),
        "codebook_variance": random(codebooks, 1, DIM, seed=7) ** 2 + 0.1,
    }
    if needs_init:
        entries["codebook_mean"][:] = np.nan
    else:
        entries |= {
            "batch_mean": random(codebooks, 1, DIM, seed=8),
            "batch_variance": random(codebooks, 1, DIM, seed=9) ** 2 + 0.1,
        }
    return {f"_codebook.{name}": value for name, value in entries.items()}


def cosine(state):
    return state | {"_codebook.embed": unit(state["_codebook.embed"])}


# Every way in which the two libraries keep a codebook: arguments, state, features of the input.
LAYOUTS = {
    "ema": ({}, state_dict(), DIM),
    "cosine": ({"use_cosine_sim": True}, cosine(state_dict()), DIM),
    "gradient": ({"learnable_codebook": True, "ema_update": False}, state_dict(), DIM),
    "frozen": ({"freeze_codebook": True}, state_dict(), DIM),
    "projection": ({"codebook_dim": DIM}, state_dict(**projections(DIM)), FEATURES),
    "shared heads": ({"heads": HEADS, "codebook_dim": DIM}, state_dict(), HEADS * DIM),
    "separate heads": (
        {"heads": HEADS, "codebook_dim": DIM, "separate_codebook_per_head": True},
        state_dict(HEADS),
        HEADS * DIM,
    ),
    "projected separate heads": (
        {"heads": HEADS, "separate_codebook_per_head": True, "codebook_dim": DIM, "learnable_codebook": True},
        state_dict(HEADS, **projections(HEADS * DIM)),
        FEATURES,
    ),
    "affine": ({"affine_param": True}, state_dict(**statistics()), DIM),
    "affine, no batch yet": ({"affine_param": True}, state_dict(**statistics(needs_init=True)), DIM),
    "replacement": ({"threshold_ema_dead_code": 0.1}, state_dict(), DIM),
}
layouts = pytest.mark.parametrize(("arguments", "state", "features"), LAYOUTS.values(), ids=LAYOUTS.keys())


def imported(state, features=DIM, **arguments):
    return vector_quantize_pytorch(state, {"dim": features, "codebook_size": CODES, **arguments})


def reference(arguments, state, z):
    """The forward pass of vector-quantize-pytorch in evaluation, in float64."""
    state = {key: value.astype(np.float64) for key, value in state.items()}
    z = np.asarray(z, np.float64)
    if "project_in.weight" in state:
        z = z @ state["project_in.weight"].T + state["project_in.bias"]
    codes = state["_codebook.embed"]
    if "_codebook.batch_mean" in state:
        mean, variance = (
            [state[f"_codebook.{name}_{x}"] for name in ("codebook", "batch")] for x in ("mean", "variance")
        )
        codes = (codes - mean[0]) * np.sqrt(variance[1] / variance[0]) + mean[1]
    heads = z.reshape(*z.shape[:-1], -1, DIM)
    if arguments.get("use_cosine_sim"):
        heads = unit(heads)
    number = heads.shape[-2]
    codebooks = np.broadcast_to(codes, (number, CODES, DIM))
    indices = np.stack([nearest(heads[..., head, :], codebooks[head]) for head in range(number)], axis=-1)
    chosen = np.concatenate([codebooks[head][indices[..., head]] for head in range(number)], axis=-1)
    if "project_out.weight" in state:
        chosen = chosen @ state["project_out.weight"].T + state["project_out.bias"]
    return chosen, indices if number > 1 else indices[..., 0]


@layouts
def test_an_imported_quantizer_quantizes_as_it_did_there(arguments, state, features):
    z = gaussian(6, features)
    vq, variables = imported(state, features, **arguments)
    quantized, indices = reference(arguments, state, z)
    out = vq.apply(variables, z, train=False)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.quantized, quantized, rtol=1e-5, atol=1e-6)


@layouts
def test_imported_variables_are_those_of_init(arguments, state, features):
    vq, variables = imported(state, features, **arguments)
    fresh = jax.eval_shape(vq.init, jax.random.key(0), jnp.zeros((1, features)))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(variables) == describe(fresh)


def test_moving_averages_arrive_and_use_becomes_relative():
    state = state_dict()
    codebook = imported(state)[1]["codebook"]
    counts = state["_codebook.cluster_size"][0]
    np.testing.assert_array_equal(codebook["codes"], state["_codebook.embed"][0])
    np.testing.assert_array_equal(codebook["sums"], state["_codebook.embed_avg"][0])
    np.testing.assert_array_equal(codebook["counts"], counts)
    np.testing.assert_allclose(codebook["relative_usage"], counts / counts.mean(), rtol=1e-6)


def test_a_codebook_of_an_older_release_that_has_seen_nothing_starts_at_average_use():
    state = state_dict() | {"_codebook.cluster_size": np.zeros((1, CODES), np.float32)}
    codebook = imported(state)[1]["codebook"]
    np.testing.assert_array_equal(codebook["relative_usage"], np.ones(CODES))


@pytest.mark.full
def test_each_codebook_has_its_own_average_use():
    state = state_dict(HEADS)
    state["_codebook.cluster_size"] *= np.array([[1.0], [10.0], [100.0]], np.float32)
    arguments = {"heads": HEADS, "codebook_dim": DIM, "separate_codebook_per_head": True}
    relative_usage = imported(state, HEADS * DIM, **arguments)[1]["codebook"]["relative_usage"]
    np.testing.assert_allclose(np.mean(relative_usage, axis=-1), 1, rtol=1e-6)


def test_a_learned_codebook_becomes_parameters():
    vq, variables = imported(state_dict(), learnable_codebook=True, commitment_weight=0.5)
    assert (vq.commitment_weight, vq.codebook.weight) == (0.5, 0.5)
    np.testing.assert_array_equal(variables["params"]["codes"], state_dict()["_codebook.embed"][0])
    assert variables.keys() == {"params"}


def test_variables_are_copies():
    # Tensor.numpy() shares the memory of the tensor, which PyTorch goes on training.
    state = state_dict()
    _, variables = imported(state)
    for value in state.values():
        value[...] = 0
    np.testing.assert_array_equal(variables["codebook"]["codes"], state_dict()["_codebook.embed"][0])


def test_half_precision_and_old_flags_are_read():
    state = {key: value.astype(np.float16) for key, value in cosine(state_dict()).items()}
    # As torch.Tensor([True]).
    state["_codebook.initted"] = np.ones(1, np.float32)
    codes = imported(state, use_cosine_sim=True)[1]["codebook"]["codes"]
    assert codes.dtype == jnp.float32
    np.testing.assert_allclose(codes, cosine(state_dict())["_codebook.embed"][0], atol=1e-3)


def test_a_safetensors_file_is_read(tmp_path):
    save_file(state_dict(), tmp_path / "quantizer.safetensors")
    for path in (tmp_path / "quantizer.safetensors", str(tmp_path / "quantizer.safetensors")):
        jax.tree.map(np.testing.assert_array_equal, imported(path)[1], imported(state_dict())[1])


def test_files_that_hold_no_arrays_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"something else")
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "float8.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    (tmp_path / "quantizer.pt").write_bytes(b"something else")
    for name, message in (
        ("broken.safetensors", "cannot be read"),
        ("float8.safetensors", "cannot be read"),
        ("absent.safetensors", "does not exist"),
        ("quantizer.pt", "begins as none of these does"),
    ):
        with pytest.raises(UserError, match=message):
            imported(tmp_path / name)


def without(key):
    state = state_dict()
    del state[key]
    return state


LAYER_NORM = {"project_in.0.weight": random(DIM, FEATURES), "project_in.1.weight": random(DIM)}
MISTAKES = {
    "missing": ({}, without("_codebook.embed_avg"), r"missing \['_codebook.embed_avg'\] and surplus \[\]"),
    "surplus": ({}, state_dict(scale=random(1)), r"missing \[\] and surplus \['scale'\]"),
    "no codebook": ({}, without("_codebook.embed"), "must have an entry '_codebook.embed'"),
    "whole model": (
        {},
        {f"layers.{i}.{key}": value for i in range(2) for key, value in state_dict().items()},
        r"'layers\.0\.', 'layers\.1\.'.*removeprefix\('layers\.0\.'\)",
    ),
    "number of codes": ({"codebook_size": 7}, state_dict(), r"must have shape \[1, 7, 4\], got \[1, 12, 4\]"),
    "codebook_dim": (
        {"dim": FEATURES, "codebook_dim": 6},
        state_dict(**projections(DIM)),
        r"must have shape \[1, 12, 6\], got \[1, 12, 4\]",
    ),
    "one codebook of several": ({}, state_dict(HEADS), r"must have shape \[1, 12, 4\], got \[3, 12, 4\]"),
    "heads": (
        {"heads": 2, "dim": 2 * DIM, "codebook_dim": DIM, "separate_codebook_per_head": True},
        state_dict(HEADS),
        r"must have shape \[2, 12, 4\], got \[3, 12, 4\]",
    ),
    "axes": ({}, state_dict() | {"_codebook.embed": random(CODES, DIM)}, r"must have 3 axes .*, got shape \[12, 4\]"),
    "projection of config": (
        {"dim": FEATURES, "codebook_dim": DIM},
        state_dict(),
        r"missing \['project_in.bias', 'project_in.weight'",
    ),
    "projection of arrays": ({}, state_dict(**projections(DIM)), r"surplus \['project_in.bias', 'project_in.weight'"),
    "affine of config": ({"affine_param": True}, state_dict(), r"missing \['_codebook.batch_mean'"),
    "affine of arrays": ({}, state_dict(**statistics()), r"surplus \['_codebook.batch_mean'"),
    "k-means pending": ({}, state_dict() | {"_codebook.initted": np.array(False)}, "kmeans_init"),
    "layer norm": ({}, state_dict(**LAYER_NORM), "layernorm_after_project_in"),
    "bridge": ({}, state_dict(**{"_codebook.vq_bridge.weight": random(DIM, DIM)}), "vq_bridge"),
    "objects": ({}, state_dict(note=np.array([object()])), r"arrays\['note'\] must be .*, got an array of object"),
    "not arrays": ({}, state_dict(note=[1.0]), r"arrays\['note'\] must be .*, got list"),
    "text": ({}, state_dict(note=np.array("text")), r"arrays\['note'\] must be .*, got an array of <U4"),
    "not a mapping": ({}, 3, "arrays must be a dict .*, got int"),
    "not finite": ({}, state_dict() | {"_codebook.embed": random(1, CODES, DIM) * np.inf}, r"\['_codebook.embed'\]"),
    "cosine in config": ({"use_cosine_sim": True}, state_dict(), r"config\['use_cosine_sim'\] must be False, got True"),
    "cosine in arrays": ({}, cosine(state_dict()), r"config\['use_cosine_sim'\] must be True, got False"),
    "unknown argument": ({"codebok_dim": 4}, state_dict(), "got 'codebok_dim'; did you mean 'codebook_dim'"),
    "not imported": (
        {"sync_update_v": 0.1},
        state_dict(),
        r"\['sync_update_v'\] must be off, got 0.1; .*leave it",
    ),
    "no size": (
        {"codebook_size": None},
        state_dict(),
        r"\['codebook_size'\] must be a positive integer, got None",
    ),
    "two updates": ({"learnable_codebook": True, "ema_update": True}, state_dict(), r"config\['ema_update'\] must be"),
    "threshold": ({"threshold_ema_dead_code": 9}, state_dict(), r"config\['threshold_ema_dead_code'\] must be below 0"),
}


@pytest.mark.parametrize(("arguments", "state", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_refused(arguments, state, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        vector_quantize_pytorch(state, {"dim": DIM, "codebook_size": CODES, **arguments})


def test_codes_that_collapsed_there_are_not_a_wrong_distance():
    # There, a cosine code without tokens is divided by at least 1e-6 once its average is below that.
    state = cosine(state_dict())
    state["_codebook.embed"][0, 3:5] *= 1e-3
    state["_codebook.cluster_size"][0, 3:5] = 1e-15
    with pytest.raises(UserError, match=r"^2 of 12 codes"):
        imported(state, use_cosine_sim=True)
    state["_codebook.embed"] = unit(state["_codebook.embed"])
    imported(state, use_cosine_sim=True)
