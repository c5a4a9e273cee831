"""State dicts of vector-quantize-pytorch, built here in NumPy, as variables."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.quantizing import CODES, DIM, gaussian, nearest
from vqjax import UserError, VectorQuantizer
from vqjax.importing import from_vector_quantize_pytorch
from vqjax.quantizers import EMA, LinearTransform, RunningAffine

HEADS, FEATURES = 3, 5
LIKE_THEIRS = EMA(smoothing=1e-5, start="one_token")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


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
    "ema": ({"codebook_update": LIKE_THEIRS}, state_dict(), DIM),
    "cosine": ({"metric": "cosine"}, cosine(state_dict()), DIM),
    "gradient": ({"codebook_update": "gradient"}, state_dict(), DIM),
    "frozen": ({"codebook_update": "none"}, state_dict(), DIM),
    "projection": ({"code_dim": DIM}, state_dict(**projections(DIM)), FEATURES),
    "shared heads": ({"heads": HEADS}, state_dict(), HEADS * DIM),
    "separate heads": ({"heads": HEADS, "separate_codebooks": True}, state_dict(HEADS), HEADS * DIM),
    "projected separate heads": (
        {"heads": HEADS, "separate_codebooks": True, "code_dim": DIM, "codebook_update": "gradient"},
        state_dict(HEADS, **projections(HEADS * DIM)),
        FEATURES,
    ),
    "affine": ({"codebook_transform": RunningAffine()}, state_dict(**statistics()), DIM),
    "affine, no batch yet": ({"codebook_transform": RunningAffine()}, state_dict(**statistics(needs_init=True)), DIM),
    "state of ours alone": (
        {"replace_unused_after": 9, "codebook_update": EMA(accumulation_steps=2)},
        state_dict(),
        DIM,
    ),
}
layouts = pytest.mark.parametrize(("arguments", "state", "features"), LAYOUTS.values(), ids=LAYOUTS.keys())


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
    if arguments.get("metric") == "cosine":
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
    vq, z = VectorQuantizer(num_codes=CODES, **arguments), gaussian(6, features)
    variables = from_vector_quantize_pytorch(vq, state)
    quantized, indices = reference(arguments, state, z)
    out = vq.apply(variables, z)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.quantized, quantized, rtol=1e-5, atol=1e-6)


@layouts
def test_imported_variables_are_those_of_init(arguments, state, features):
    vq = VectorQuantizer(num_codes=CODES, **arguments)
    variables = from_vector_quantize_pytorch(vq, state)
    fresh = jax.eval_shape(vq.init, jax.random.key(0), jnp.zeros((1, features)))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(variables) == describe(fresh)


def test_moving_averages_arrive_and_use_becomes_relative():
    state = state_dict()
    codebook = from_vector_quantize_pytorch(VectorQuantizer(num_codes=CODES), state)["codebook"]
    counts = state["_codebook.cluster_size"][0]
    np.testing.assert_array_equal(codebook["codes"], state["_codebook.embed"][0])
    np.testing.assert_array_equal(codebook["sums"], state["_codebook.embed_avg"][0])
    np.testing.assert_array_equal(codebook["counts"], counts)
    np.testing.assert_allclose(codebook["relative_usage"], counts / counts.mean(), rtol=1e-6)


def test_a_codebook_of_an_older_release_that_has_seen_nothing_starts_at_average_use():
    state = state_dict() | {"_codebook.cluster_size": np.zeros((1, CODES), np.float32)}
    codebook = from_vector_quantize_pytorch(VectorQuantizer(num_codes=CODES), state)["codebook"]
    np.testing.assert_array_equal(codebook["relative_usage"], np.ones(CODES))


def test_each_codebook_has_its_own_average_use():
    vq = VectorQuantizer(num_codes=CODES, heads=HEADS, separate_codebooks=True)
    state = state_dict(HEADS)
    state["_codebook.cluster_size"] *= np.array([[1.0], [10.0], [100.0]], np.float32)
    relative_usage = from_vector_quantize_pytorch(vq, state)["codebook"]["relative_usage"]
    np.testing.assert_allclose(np.mean(relative_usage, axis=-1), 1, rtol=1e-6)


def test_a_learned_codebook_becomes_parameters():
    vq = VectorQuantizer(num_codes=CODES, codebook_update="gradient")
    variables = from_vector_quantize_pytorch(vq, state_dict())
    np.testing.assert_array_equal(variables["params"]["codes"], state_dict()["_codebook.embed"][0])
    assert not np.any(variables["codebook"]["offsets"])


def test_variables_are_copies():
    # Tensor.numpy() shares the memory of the tensor, which PyTorch goes on training.
    state = state_dict()
    variables = from_vector_quantize_pytorch(VectorQuantizer(num_codes=CODES), state)
    for value in state.values():
        value[...] = 0
    np.testing.assert_array_equal(variables["codebook"]["codes"], state_dict()["_codebook.embed"][0])


def test_half_precision_and_old_flags_are_read():
    state = {key: value.astype(np.float16) for key, value in cosine(state_dict()).items()}
    # As torch.Tensor([True]).
    state["_codebook.initted"] = np.ones(1, np.float32)
    codes = from_vector_quantize_pytorch(VectorQuantizer(num_codes=CODES, metric="cosine"), state)["codebook"]["codes"]
    assert codes.dtype == jnp.float32
    np.testing.assert_allclose(codes, cosine(state_dict())["_codebook.embed"][0], atol=1e-3)


def test_a_safetensors_file_is_read(tmp_path):
    save_file(state_dict(), tmp_path / "quantizer.safetensors")
    vq = VectorQuantizer(num_codes=CODES)
    for path in (tmp_path / "quantizer.safetensors", str(tmp_path / "quantizer.safetensors")):
        loaded = from_vector_quantize_pytorch(vq, path)
        jax.tree.map(np.testing.assert_array_equal, loaded, from_vector_quantize_pytorch(vq, state_dict()))


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"something else")
    (tmp_path / "quantizer.pt").write_bytes(b"something else")
    for name, message in (
        ("broken.safetensors", "cannot be read"),
        ("absent.safetensors", "not there"),
        ("quantizer.pt", "never read"),
    ):
        with pytest.raises(UserError, match=message):
            from_vector_quantize_pytorch(VectorQuantizer(num_codes=CODES), tmp_path / name)


def without(key):
    state = state_dict()
    del state[key]
    return state


LAYER_NORM = {"project_in.0.weight": random(DIM, FEATURES), "project_in.1.weight": random(DIM)}
MISTAKES = {
    "missing": ({}, without("_codebook.embed_avg"), r"missing \['_codebook.embed_avg'\], surplus \[\]"),
    "surplus": ({}, state_dict(scale=random(1)), r"missing \[\], surplus \['scale'\]"),
    "no codebook": ({}, without("_codebook.embed"), "no entry '_codebook.embed'"),
    "whole model": (
        {},
        {f"layers.{i}.{key}": value for i in range(2) for key, value in state_dict().items()},
        r"'layers\.0\.', 'layers\.1\.'.*removeprefix\('layers\.0\.'\)",
    ),
    "num_codes": ({"num_codes": 7}, state_dict(), r"has shape \[1, 12, 4\] where the quantizer has \[1, 7, 4\]"),
    "code_dim": ({"code_dim": 6}, state_dict(**projections(DIM)), r"\[1, 12, 4\] where the quantizer has \[1, 12, 6\]"),
    "one codebook of several": ({}, state_dict(HEADS), r"\[3, 12, 4\] where the quantizer has \[1, 12, 4\]"),
    "heads": ({"heads": 2, "separate_codebooks": True}, state_dict(HEADS), r"where the quantizer has \[2, 12, 4\]"),
    "axes": ({}, state_dict() | {"_codebook.embed": random(CODES, DIM)}, r"\[12, 4\]: in a state dict it has 3 axes"),
    "projection of ours": ({"code_dim": DIM}, state_dict(), r"missing \['project_in.bias', 'project_in.weight'"),
    "projection of theirs": ({}, state_dict(**projections(DIM)), r"surplus \['project_in.bias', 'project_in.weight'"),
    "affine of ours": ({"codebook_transform": RunningAffine()}, state_dict(), r"missing \['_codebook.batch_mean'"),
    "affine of theirs": ({}, state_dict(**statistics()), r"surplus \['_codebook.batch_mean'"),
    "transform": (
        {"codebook_transform": LinearTransform(), "codebook_update": "none"},
        state_dict(),
        "codebook_transform=LinearTransform",
    ),
    "k-means pending": ({}, state_dict() | {"_codebook.initted": np.array(False)}, "kmeans_init"),
    "layer norm": ({"code_dim": DIM}, state_dict(**LAYER_NORM), "layernorm_after_project_in"),
    "bridge": ({}, state_dict(**{"_codebook.vq_bridge.weight": random(DIM, DIM)}), "vq_bridge"),
    "objects": ({}, state_dict(note=np.array([object()])), r"state\['note'\] is a array of object"),
    "no arrays": ({}, state_dict(note=[1.0]), r"state\['note'\] is a list"),
    "text": ({}, state_dict(note=np.array("text")), r"state\['note'\] is a array of <U4"),
    "no mapping": ({}, 3, "state is a int"),
    "not finite": ({}, state_dict() | {"_codebook.embed": random(1, CODES, DIM) * np.inf}, r"\['_codebook.embed'\]"),
    "cosine here": ({"metric": "cosine"}, state_dict(), "metric='cosine' is not allowed.*use_cosine_sim=False"),
    "cosine there": ({}, cosine(state_dict()), "metric='euclidean' is not allowed.*use_cosine_sim=True"),
}


@pytest.mark.parametrize(("arguments", "state", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_refused(arguments, state, message, monkeypatch):
    # The type checks of the test run would speak first; users do not have them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=message):
        from_vector_quantize_pytorch(VectorQuantizer(**{"num_codes": CODES, **arguments}), state)


def test_codes_that_collapsed_there_are_told_from_a_wrong_metric():
    # There, a cosine code without tokens is divided by at least 1e-6 once its average is below that.
    vq, state = VectorQuantizer(num_codes=CODES, metric="cosine"), cosine(state_dict())
    state["_codebook.embed"][0, 3:5] *= 1e-3
    state["_codebook.cluster_size"][0, 3:5] = 1e-15
    with pytest.raises(UserError, match=r"^2 of 12 codes"):
        from_vector_quantize_pytorch(vq, state)
    state["_codebook.embed"] = unit(state["_codebook.embed"])
    from_vector_quantize_pytorch(vq, state)
