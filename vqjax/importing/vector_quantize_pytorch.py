"""Quantizers trained with vector-quantize-pytorch."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError, did_you_mean
from vqjax.importing.state_dict import StateDict, check_entries, read_state_dict
from vqjax.quantizers.codebooks import BaseCodebook, EMACodebook, FrozenCodebook, GradientCodebook, Replacement
from vqjax.quantizers.transforms import RunningAffine
from vqjax.quantizers.validation import require, require_count
from vqjax.quantizers.vector import VectorQuantizer

# The arguments of VectorQuantize that decide what its arrays mean and how training continues, with its defaults.
OPTIONS = {
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
}
# Those that change nothing here: layout of inputs, devices, how the codebook was started, and details of the next.
IGNORED = {"kmeans_init", "kmeans_iters", "sync_kmeans", "sync_codebook", "sync_affine_param", "channel_last"}
IGNORED |= {"accept_image_fmap", "accept_3d_fmap", "return_zeros_for_masked_padding", "route_gradients_to_input"}
IGNORED |= {"orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes", "codebook_diversity_temperature"}
IGNORED |= {"sample_codebook_temp", "directional_reparam_variance"}
# Those that are not imported, and are off by default.
REFUSED = {"layernorm_after_project_in", "vq_bridge", "commitment_use_cross_entropy_loss", "orthogonal_reg_weight"}
REFUSED |= {"codebook_diversity_loss_weight", "stochastic_sample_codes", "straight_through", "directional_reparam"}
REFUSED |= {"manual_ema_update", "in_place_codebook_optimizer", "manual_in_place_optimizer_update", "sync_update_v"}
# The statistics of affine_param=True, and where RunningAffine keeps them.
STATISTICS = {
    "_codebook.batch_mean": "token_mean",
    "_codebook.batch_variance": "token_variance",
    "_codebook.codebook_mean": "code_mean",
    "_codebook.codebook_variance": "code_variance",
}
FLAGS = {"_codebook.initted", "_codebook.codebook_mean_needs_init", "_codebook.codebook_variance_needs_init"}
PROJECTIONS = ("project_in", "project_out")


def vector_quantize_pytorch(
    arrays: Mapping[str, Any] | str | os.PathLike, config: Mapping[str, Any]
) -> tuple[VectorQuantizer, dict[str, Any]]:
    """Turn a trained ``VectorQuantize`` into a ``VectorQuantizer`` and its variables.

    Training then continues here: codes, moving averages and projections are the same numbers. The relative use of
    a code starts at its count over the average count.

    =================================================  ==============================================================
    ``VectorQuantize`` (and its default)               ``VectorQuantizer``
    =================================================  ==============================================================
    ``codebook_size``                                  ``num_codes``
    ``dim``                                            none: taken from the input
    ``codebook_dim`` (``dim``)                         ``codebook_dim`` where ``heads * codebook_dim != dim``
    ``heads`` (1)                                      ``heads``
    ``separate_codebook_per_head=True``                ``separate_codebooks=True``, with at least two heads
    ``use_cosine_sim=True``                            ``distance="cosine"``
    ``decay`` (0.8), ``eps`` (1e-5)                    ``codebook=EMACodebook(decay=0.8, smoothing=1e-5)``
    ``learnable_codebook=True``                        ``codebook=GradientCodebook()``
    ``freeze_codebook=True``                           ``codebook=FrozenCodebook()``
    ``commitment_weight`` (1.0)                        ``commitment_weight``; also ``GradientCodebook(weight=1.0)``
    ``rotation_trick=True`` (as by default)            ``estimator="rotation"``
    ``rotation_trick=False``                           ``estimator="straight_through"``
    ``threshold_ema_dead_code`` (0), a count           ``replace=Replacement(below=...)``, its ratio to the average
                                                       count in ``arrays``
    ``affine_param=True``                              ``transform=RunningAffine()``
    ``affine_param_batch_decay`` (0.99)                ``RunningAffine(token_decay=0.99)``
    ``affine_param_codebook_decay`` (0.9)              ``RunningAffine(code_decay=0.9)``
    ``accept_image_fmap``, ``channel_last=False``      none: channels are always last
    ``layernorm_after_project_in``, ``vq_bridge``      not imported
    =================================================  ==============================================================

    Args:
      arrays: The state dict, ``{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}``, or the
        path of a ``.safetensors`` file.
      config: The arguments with which the ``VectorQuantize`` was constructed, by name.

    Returns:
      The quantizer to continue with, and its variables, copies of the arrays.

    Raises:
      UserError: An argument is unknown or not imported; entries are missing, surplus, of the wrong shape or not
        finite; the codebook is that of the other distance, or was never initialized.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = np.random.default_rng(0).normal(size=(1, 16, 4)).astype(np.float32)
      >>> arrays = {"_codebook.embed": codes, "_codebook.embed_avg": codes}
      >>> arrays |= {"_codebook.cluster_size": np.ones((1, 16), np.float32), "_codebook.initted": np.array(True)}
      >>> vq, variables = vector_quantize_pytorch(arrays, {"dim": 4, "codebook_size": 16, "decay": 0.9})
      >>> vq.apply(variables, jnp.array(codes[0, 3:5]), method="encode").tolist()
      [3, 4]

    Source: vector-quantize-pytorch 1.32 (arguments, and names and shapes of its state dict).
    """
    arrays = read_state_dict(arrays)
    _check_parts(arrays)
    options = _options(config)
    arrays = _without_unset_statistics(_with_scalar_flags(arrays))
    vq = _build(options, arrays)
    fresh = vq.init(jax.random.key(0), jnp.zeros((1, options["dim"])))
    advice = "pass the arguments that the quantizer was trained with in config"
    check_entries(arrays, _expected_shapes(vq, fresh, arrays), advice)
    if not arrays["_codebook.initted"]:
        raise UserError(
            "_codebook.initted must be True, got False: this codebook still waits for k-means on its first batch, and "
            "holds zeros; import it after a first forward pass there, or start again with the method kmeans_init."
        )
    _check_distance(vq.distance, arrays["_codebook.embed"], arrays["_codebook.cluster_size"])
    return vq, jax.tree.map(jnp.array, _fill(vq, fresh, arrays))


def _check_parts(arrays: StateDict) -> None:
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
        raise UserError(f"arrays must have an entry '_codebook.embed'; {_where_quantizers_are(arrays)}")
    for key, axes in (("_codebook.embed", 3), ("project_in.weight", 2)):
        if key in arrays and arrays[key].ndim != axes:
            raise UserError(f"{key} must have {axes} axes in a state dict, got shape {list(arrays[key].shape)}.")


def _where_quantizers_are(arrays: StateDict) -> str:
    prefixes = sorted(key.removesuffix("_codebook.embed") for key in arrays if key.endswith("._codebook.embed"))
    if not prefixes:
        return "pass the state dict of a VectorQuantize."
    first = repr(prefixes[0])
    return (
        f"there are quantizers under {prefixes}. Pass the entries of one, as "
        f"{{key.removeprefix({first}): value for key, value in arrays.items() if key.startswith({first})}}."
    )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a ``VectorQuantize`` by its defaults."""
    require(isinstance(config, Mapping), "config", config, "a mapping of argument names to values")
    for name, value in config.items():
        if name not in OPTIONS.keys() | IGNORED | REFUSED:
            known = did_you_mean(name, OPTIONS.keys() | IGNORED | REFUSED)
            raise UserError(f"config must have arguments of a VectorQuantize, got {name!r}; {known}")
        advice = "it is not imported; leave it out to continue without it"
        require(name not in REFUSED or not value, f"config[{name!r}]", value, "off", advice)
    options = OPTIONS | {name: value for name, value in config.items() if name in OPTIONS}
    for name in ("dim", "codebook_size", "heads"):
        require_count(f"config[{name!r}]", options[name])
    learned = bool(options["learnable_codebook"])
    moving = not learned if options["ema_update"] is None else options["ema_update"]
    require(not (learned and moving), "config['ema_update']", True, "False where learnable_codebook=True")
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


def _expected_shapes(vq: VectorQuantizer, fresh: Mapping[str, Any], arrays: StateDict) -> dict[str, tuple[int, ...]]:
    codes = fresh["params" if vq.codebook.in_params else "codebook"]["codes"].shape
    codes = codes if vq.separate_codebooks else (1, *codes)
    shapes = {"_codebook.initted": (), "_codebook.cluster_size": codes[:-1]}
    shapes |= {"_codebook.embed": codes, "_codebook.embed_avg": codes}
    if vq.codebook_dim is not None:
        for name in PROJECTIONS:
            features, outputs = fresh["params"][f"{name}_kernel"].shape
            shapes |= {f"{name}.weight": (outputs, features), f"{name}.bias": (outputs,)}
    if vq.codebook.transform is not None:
        shapes |= {"_codebook.codebook_mean_needs_init": (), "_codebook.codebook_variance_needs_init": ()}
        if not arrays.get("_codebook.codebook_mean_needs_init", False):
            shapes |= dict.fromkeys(STATISTICS, (codes[0], 1, codes[-1]))
    return shapes


def _check_distance(distance: str, codes: np.ndarray, counts: np.ndarray) -> None:
    """Compare the distance with the length of the codes, which is one under ``use_cosine_sim=True``."""
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
            f"{np.sum(~unit)} of {unit.size} codes in _codebook.embed are shorter than one: vector-quantize-pytorch "
            "shrinks unused codes to zero, which is not a direction. Put unit vectors in their rows, such as copies of "
            "used codes, and set threshold_ema_dead_code to put them to use."
        )


def _fill(vq: VectorQuantizer, fresh: Mapping[str, Any], arrays: StateDict) -> dict[str, Any]:
    """Return the variables with the arrays in their places."""

    def of_codebook(name: str) -> np.ndarray:
        array = arrays[name]
        return array if vq.separate_codebooks else array[0]

    params, codebook = dict(fresh.get("params", {})), dict(fresh["codebook"])
    (params if vq.codebook.in_params else codebook)["codes"] = of_codebook("_codebook.embed")
    counts = of_codebook("_codebook.cluster_size")
    if "counts" in codebook:
        codebook |= {"counts": counts, "sums": of_codebook("_codebook.embed_avg")}
    if "relative_usage" in codebook:
        average = np.mean(counts, axis=-1, keepdims=True)
        # Older releases start at counts of zero.
        codebook["relative_usage"] = np.divide(counts, average, out=np.ones_like(counts), where=average > 0)
    if vq.codebook_dim is not None:
        for name in PROJECTIONS:
            params[f"{name}_kernel"] = arrays[f"{name}.weight"].T
            params[f"{name}_bias"] = arrays[f"{name}.bias"]
    if STATISTICS.keys() <= arrays.keys():
        statistics = {name: of_codebook(entry)[..., 0, :] for entry, name in STATISTICS.items()}
        codebook["codebook_transform"] = statistics | {"batches": np.int32(1)}
    return {**fresh, "codebook": codebook} | ({"params": params} if params else {})
