"""Quantizers of vectors: ``VectorQuantize``, ``SimVQ`` and ``RandomProjectionQuantizer``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import StateDict, check_entries
from vqjax.importing.vector_quantize_pytorch.arguments import (
    ADVICE,
    Arguments,
    Imported,
    entries_under,
    merge,
    projection_shapes,
    projections,
)
from vqjax.quantizers.codebooks import BaseCodebook, EMACodebook, FrozenCodebook, GradientCodebook, Replacement
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.transforms import LinearTransform, RunningAffine
from vqjax.quantizers.validation import require, require_count
from vqjax.quantizers.vector import SimVQ, VectorQuantizer

LAYOUT = frozenset({"channel_last", "channel_first", "is_channel_first", "accept_image_fmap", "accept_3d_fmap"})
"""Arguments about the axes of the input: here features are always the last one."""

VECTOR_QUANTIZE = Arguments(
    "VectorQuantize",
    {
        "dim": None,
        "codebook_size": None,
        "codebook_dim": None,
        "heads": 1,
        "separate_codebook_per_head": False,
        "use_cosine_sim": False,
        "decay": 0.8,
        "eps": 1e-5,
        "freeze_codebook": False,
        "ema_update": None,
        "learnable_codebook": None,
        "threshold_ema_dead_code": 0,
        "commitment_weight": 1.0,
        "rotation_trick": None,
        "affine_param": False,
        "affine_param_batch_decay": 0.99,
        "affine_param_codebook_decay": 0.9,
        "stochastic_sample_codes": False,
        "sample_codebook_temp": 1.0,
    },
    ignored=LAYOUT
    | {"kmeans_init", "kmeans_iters", "sync_kmeans", "sync_codebook", "sync_affine_param"}
    | {"orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes", "codebook_diversity_temperature"}
    | {"directional_reparam_variance"},
    refused=frozenset(
        {"layernorm_after_project_in", "vq_bridge", "commitment_use_cross_entropy_loss", "orthogonal_reg_weight"}
        | {"codebook_diversity_loss_weight", "straight_through", "directional_reparam"}
        | {"manual_ema_update", "in_place_codebook_optimizer", "manual_in_place_optimizer_update", "sync_update_v"}
    ),
    required=frozenset({"return_zeros_for_masked_padding", "route_gradients_to_input"}),
)
SIM_VQ = Arguments(
    "SimVQ",
    {
        "dim": None,
        "codebook_size": None,
        "rotation_trick": True,
        "input_to_quantize_commit_loss_weight": 0.25,
        "commitment_weight": 1.0,
        "frozen_codebook_dim": None,
    },
    ignored=LAYOUT | {"init_fn"},
    refused=frozenset({"codebook_transform"}),
)
# It always evaluates its VectorQuantize, whose other arguments have no effect then.
RANDOM_PROJECTION = Arguments(
    "RandomProjectionQuantizer",
    {"dim": None, "codebook_size": None, "codebook_dim": None, "num_codebooks": 1, "norm": True},
    ignored=(VECTOR_QUANTIZE.known.keys() | VECTOR_QUANTIZE.ignored)
    - {"dim", "codebook_size", "codebook_dim", "heads", "separate_codebook_per_head", "use_cosine_sim", "affine_param"},
    refused=VECTOR_QUANTIZE.refused | {"affine_param"},
)

# The statistics of affine_param=True, and where RunningAffine keeps them.
STATISTICS = {
    "_codebook.batch_mean": "token_mean",
    "_codebook.batch_variance": "token_variance",
    "_codebook.codebook_mean": "code_mean",
    "_codebook.codebook_variance": "code_variance",
}
FLAGS = {"_codebook.initted", "_codebook.codebook_mean_needs_init", "_codebook.codebook_variance_needs_init"}


def vector_quantize(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``VectorQuantize``; see :func:`vqjax.importing.vector_quantize_pytorch`."""
    _check_parts(arrays, prefix)
    options = _options(config)
    arrays = _without_unset_statistics(_with_scalar_flags(arrays))
    vq = _build(options, arrays)
    fresh = vq.init(jax.random.key(0), jnp.zeros((1, options["dim"]), jnp.float32))
    check_entries(arrays, _expected_shapes(vq, fresh, options["dim"], arrays), ADVICE, prefix)
    _check_codes(arrays, vq.distance, prefix)
    return vq, _fill(vq, fresh, arrays)


def sim_vq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``SimVQ``."""
    options = SIM_VQ.complete(config)
    dim, size = options["dim"], options["codebook_size"]
    for name in ("dim", "codebook_size"):
        require_count(f"config[{name!r}]", options[name])
    frozen = options["frozen_codebook_dim"]
    expected, advice = f"None, or dim={dim}", "the linear map of codes is square here"
    require(frozen in (None, dim), "config['frozen_codebook_dim']", frozen, expected, advice)
    check_entries(arrays, {"code_transform.weight": (dim, dim), "frozen_codebook": (size, dim)}, ADVICE, prefix)
    weight = options["commitment_weight"]
    quantizer = SimVQ(
        num_codes=size,
        estimator="rotation" if options["rotation_trick"] else "straight_through",
        codebook=FrozenCodebook(transform=LinearTransform(), weight=weight),
        commitment_weight=weight * options["input_to_quantize_commit_loss_weight"],
    )
    params = {"codebook_transform": {"linear": {"kernel": arrays["code_transform.weight"].T}}}
    return quantizer, {"params": params, "codebook": {"codes": arrays["frozen_codebook"]}}


def random_projection(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``RandomProjectionQuantizer`` of one codebook."""
    options = RANDOM_PROJECTION.complete(config)
    for name in ("dim", "codebook_size", "codebook_dim"):
        require_count(f"config[{name!r}]", options[name])
    advice = "several codebooks lie behind a linear layer with a bias there, which does not exist here"
    require(options["num_codebooks"] == 1, "config['num_codebooks']", options["num_codebooks"], "1", advice)
    codes = (1, options["codebook_size"], options["codebook_dim"])
    shapes = {f"vq._codebook.{name}": codes for name in ("embed", "embed_avg")}
    shapes |= {"vq._codebook.cluster_size": codes[:-1], "vq._codebook.initted": ()}
    shapes["rand_projs"] = (1, options["dim"], options["codebook_dim"])
    inner = _with_scalar_flags(entries_under(arrays, "vq."))
    check_entries(arrays | {f"vq.{key}": value for key, value in inner.items()}, shapes, ADVICE, prefix)
    _check_codes(inner, "cosine", f"{prefix}vq.")
    quantizer = RandomProjectionQuantizer(
        options["codebook_size"], options["codebook_dim"], standardize=bool(options["norm"])
    )
    state = {"projections": arrays["rand_projs"], "quantizer": {"codes": arrays["vq._codebook.embed"][0]}}
    return quantizer, {"codebook": state}


def _check_parts(arrays: StateDict, prefix: str) -> None:
    """Refuse parts without a counterpart, before the entries are compared one by one."""
    if "project_in.1.weight" in arrays:
        raise UserError(
            "layernorm_after_project_in must be False, got its weights in arrays; it is not imported, as no such layer "
            "exists here."
        )
    if any(key.startswith("_codebook.vq_bridge.") for key in arrays):
        raise UserError(
            "vq_bridge must be None, got its weights in arrays; it is not imported: write that module as a transform."
        )
    if "_codebook.embed" not in arrays:
        raise UserError(f"arrays must have an entry '{prefix}_codebook.embed'; {_where_quantizers_are(arrays)}")
    for key, axes in (("_codebook.embed", 3), ("project_in.weight", 2)):
        if key in arrays and arrays[key].ndim != axes:
            shape = list(arrays[key].shape)
            raise UserError(f"{prefix}{key} must have {axes} axes in a state dict, got shape {shape}.")


def _where_quantizers_are(arrays: StateDict) -> str:
    prefixes = sorted(key.removesuffix("_codebook.embed") for key in arrays if key.endswith("._codebook.embed"))
    if not prefixes:
        return "pass the state dict of a VectorQuantize."
    first = repr(prefixes[0])
    return (
        f"there are quantizers under {prefixes}. Pass the entries of one, as "
        f"{{key.removeprefix({first}): value for key, value in arrays.items() if key.startswith({first})}}; or name "
        "the class of all, such as vector_quantize_pytorch(arrays, config, 'ResidualVQ')."
    )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a ``VectorQuantize`` by its defaults."""
    options = VECTOR_QUANTIZE.complete(config)
    for name in ("dim", "codebook_size", "heads"):
        require_count(f"config[{name!r}]", options[name])
    learned = bool(options["learnable_codebook"])
    moving = not learned if options["ema_update"] is None else options["ema_update"]
    require(not (learned and moving), "config['ema_update']", True, "False if learnable_codebook=True")
    frozen = options["freeze_codebook"] or not (learned or moving)
    return options | {"kind": "frozen" if frozen else "gradient" if learned else "ema"}


def _build(options: Mapping[str, Any], arrays: StateDict) -> VectorQuantizer:
    rotates = options["dim"] > 1 if options["rotation_trick"] is None else options["rotation_trick"]
    codebook_dim = options["codebook_dim"] or options["dim"]
    return VectorQuantizer(
        num_codes=options["codebook_size"],
        distance="cosine" if options["use_cosine_sim"] else "euclidean",
        estimator="rotation" if rotates else "straight_through",
        codebook=_build_codebook(options, arrays),
        commitment_weight=options["commitment_weight"],
        codebook_dim=None if options["heads"] * codebook_dim == options["dim"] else codebook_dim,
        heads=options["heads"],
        separate_codebooks=options["separate_codebook_per_head"] and options["heads"] > 1,
        # At a temperature of zero, nothing is drawn there.
        sampling_temperature=(options["sample_codebook_temp"] or None) if options["stochastic_sample_codes"] else None,
    )


def _build_codebook(options: Mapping[str, Any], arrays: StateDict) -> BaseCodebook:
    decays = options["affine_param_batch_decay"], options["affine_param_codebook_decay"]
    transform = RunningAffine(*decays) if options["affine_param"] else None
    if options["kind"] == "frozen":
        return FrozenCodebook(transform=transform)
    shared = {"decay": options["decay"], "replace": _replacement(options, arrays), "transform": transform}
    if options["kind"] == "gradient":
        return GradientCodebook(weight=options["commitment_weight"], **shared)
    return EMACodebook(smoothing=options["eps"], **shared)


def _replacement(options: Mapping[str, Any], arrays: StateDict) -> Replacement | None:
    """Turn a threshold of the moving average of tokens into one relative to the average code."""
    threshold, average = options["threshold_ema_dead_code"], float(np.mean(arrays.get("_codebook.cluster_size", 0)))
    if not threshold:
        return None
    expected = f"below {average:.3g}, the average of _codebook.cluster_size"
    advice = "leave it out, and set codebook=EMACodebook(replace=Replacement(below=...)) in a clone"
    require(threshold < average, "config['threshold_ema_dead_code']", threshold, expected, advice)
    return Replacement(below=threshold / average)


def _with_scalar_flags(arrays: StateDict) -> StateDict:
    """Remove the axis with which older releases saved flags."""
    return {key: value.reshape(()) if key in FLAGS and value.size == 1 else value for key, value in arrays.items()}


def _without_unset_statistics(arrays: StateDict) -> StateDict:
    """Drop statistics that no training has set: uninitialized memory there, the state of ``init`` here."""
    if not arrays.get("_codebook.codebook_mean_needs_init", False):
        return arrays
    return {key: value for key, value in arrays.items() if key not in STATISTICS}


def _expected_shapes(
    vq: VectorQuantizer, fresh: Mapping[str, Any], dim: int, arrays: StateDict
) -> dict[str, tuple[int, ...]]:
    codes = fresh["params" if vq.codebook.in_params else "codebook"]["codes"].shape
    codes = codes if vq.separate_codebooks else (1, *codes)
    shapes = {"_codebook.initted": (), "_codebook.cluster_size": codes[:-1]}
    shapes |= {"_codebook.embed": codes, "_codebook.embed_avg": codes}
    if vq.codebook_dim is not None:
        shapes |= projection_shapes(dim, vq.heads * vq.codebook_dim)
    if vq.codebook.transform is not None:
        shapes |= {"_codebook.codebook_mean_needs_init": (), "_codebook.codebook_variance_needs_init": ()}
        if not arrays.get("_codebook.codebook_mean_needs_init", False):
            shapes |= dict.fromkeys(STATISTICS, (codes[0], 1, codes[-1]))
    return shapes


def _check_codes(arrays: StateDict, distance: str, prefix: str) -> None:
    """Refuse codes that wait for k-means, or whose length is not that of the distance: one for cosine."""
    if not arrays["_codebook.initted"]:
        raise UserError(
            f"{prefix}_codebook.initted must be True, got False: this codebook still waits for k-means on its first "
            "batch, and holds zeros; import it after a first forward pass there, or start again with the method "
            "kmeans_init."
        )
    codes, counts = arrays["_codebook.embed"], arrays["_codebook.cluster_size"]
    lengths = np.linalg.norm(codes.astype(np.float64), axis=-1)
    if distance == "euclidean":
        if codes.shape[-1] > 1 and np.all(np.abs(lengths - 1) < 1e-3):
            raise UserError("config['use_cosine_sim'] must be True, got False: all codes in arrays have length one.")
        return
    # Normalization there divides by at least 1e-6, so codes that have long been unused are shorter than one.
    unit, unused = np.abs(lengths - 1) < 1e-2, counts < 1e-6
    if not np.all(unit | ((lengths < 1) & unused)):
        raise UserError(
            f"config['use_cosine_sim'] must be False, got True: the lengths of the codes in arrays are "
            f"{lengths.min():.3g} to {lengths.max():.3g}."
        )
    if not np.all(unit):
        raise UserError(
            f"{np.sum(~unit)} of {unit.size} codes in {prefix}_codebook.embed are shorter than one: "
            "vector-quantize-pytorch shrinks unused codes to zero, which is not a direction. Put unit vectors in their "
            "rows, such as copies of used codes, and set threshold_ema_dead_code to put them to use."
        )


def _fill(vq: VectorQuantizer, fresh: Mapping[str, Any], arrays: StateDict) -> dict[str, Any]:
    """Return the variables with the arrays in their places."""

    def of_codebook(name: str) -> np.ndarray:
        array = arrays[name]
        return array if vq.separate_codebooks else array[0]

    params, codebook = ({**fresh.get(name, {})} for name in ("params", "codebook"))
    (params if vq.codebook.in_params else codebook)["codes"] = of_codebook("_codebook.embed")
    counts = of_codebook("_codebook.cluster_size")
    if "counts" in codebook:
        codebook |= {"counts": counts, "sums": of_codebook("_codebook.embed_avg")}
    if "relative_usage" in codebook:
        average = np.mean(counts, axis=-1, keepdims=True)
        # Older releases start at counts of zero.
        codebook["relative_usage"] = np.divide(counts, average, out=np.ones_like(counts), where=average > 0)
    params |= projections(arrays)
    if STATISTICS.keys() <= arrays.keys():
        statistics = {name: of_codebook(entry)[..., 0, :] for entry, name in STATISTICS.items()}
        codebook["codebook_transform"] = statistics | {"batches": np.int32(1)}
    return merge({"params": params}, {"codebook": codebook})
