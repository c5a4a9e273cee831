"""Quantizers trained with vector-quantize-pytorch."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import StateDict, check_entries, read_state_dict
from vqjax.quantizers.transforms import RunningAffine
from vqjax.quantizers.vector import VectorQuantizer

# The statistics of affine_param=True, and where RunningAffine keeps them.
STATISTICS = {
    "_codebook.batch_mean": "token_mean",
    "_codebook.batch_variance": "token_variance",
    "_codebook.codebook_mean": "code_mean",
    "_codebook.codebook_variance": "code_variance",
}
FLAGS = {"_codebook.initted", "_codebook.codebook_mean_needs_init", "_codebook.codebook_variance_needs_init"}
PROJECTIONS = ("project_in", "project_out")


def from_vector_quantize_pytorch(vq: VectorQuantizer, state: Mapping[str, Any] | str | os.PathLike) -> dict[str, Any]:
    """Turns the state dict of a ``VectorQuantize`` into variables of a ``VectorQuantizer``.

    Training then continues here: codes, moving averages and projections are the same numbers. The relative use of
    a code starts at its count over the average count. Least-recently-used replacement and gradient accumulation,
    which the other library does not save, start anew.

    Construct ``vq`` with the options that the state was trained with:

    =================================================  ==============================================================
    ``VectorQuantize`` (and its default)               ``VectorQuantizer``
    =================================================  ==============================================================
    ``codebook_size``                                  ``num_codes``
    ``dim``                                            none: taken from the input
    ``codebook_dim`` (``dim``)                         ``code_dim`` if ``heads * codebook_dim != dim``, else left out
    ``heads`` (1)                                      ``heads``
    ``separate_codebook_per_head=True``                ``separate_codebooks=True``, with at least two heads
    ``use_cosine_sim=True``                            ``metric="cosine"``
    ``decay`` (0.8)                                    ``decay``
    ``eps`` (1e-5)                                     ``codebook_update=EMA(smoothing=1e-5, start="one_token")``;
                                                       ``start`` is of no consequence after an import
    ``learnable_codebook=True``                        ``codebook_update="gradient"``
    ``freeze_codebook=True``                           ``codebook_update="none"``
    ``commitment_weight`` (1.0)                        ``commitment_weight``, and ``codebook_weight`` with the same
                                                       value if the codebook is learned by gradient
    ``rotation_trick=True`` (as by default)            ``estimator="rotation"``
    ``rotation_trick=False``                           ``estimator="straight_through"``
    ``threshold_ema_dead_code`` (0), tokens per batch  ``replace_dead_codes=True`` and ``dead_code_threshold``, a
                                                       fraction: their number times ``num_codes`` over the tokens of
                                                       a batch
    ``affine_param=True``                              ``codebook_transform=RunningAffine()``
    ``affine_param_batch_decay`` (0.99)                ``RunningAffine(token_decay=0.99)``
    ``affine_param_codebook_decay`` (0.9)              ``RunningAffine(code_decay=0.9)``
    ``kmeans_init=True``                               a call of the method ``kmeans_init``, before training
    ``accept_image_fmap``, ``channel_last=False``      none: channels are always last
    ``layernorm_after_project_in``, ``vq_bridge``      not imported
    =================================================  ==============================================================

    Args:
      vq: The quantizer to continue with.
      state: Arrays by name, ``{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}``, or the
        path of a ``.safetensors`` file.

    Returns:
      Variables for ``vq.apply``, copies of the arrays.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite; the codebook is that of the other
        metric, or was never initialized; the state uses something that is not imported.

    Example:
      >>> import jax.numpy as jnp
      >>> from vqjax.quantizers import EMA
      >>> codes = np.random.default_rng(0).normal(size=(1, 16, 4)).astype(np.float32)
      >>> state = {"_codebook.embed": codes, "_codebook.embed_avg": codes}
      >>> state |= {"_codebook.cluster_size": np.ones((1, 16), np.float32), "_codebook.initted": np.array(True)}
      >>> vq = VectorQuantizer(num_codes=16, decay=0.8, codebook_update=EMA(smoothing=1e-5))
      >>> variables = from_vector_quantize_pytorch(vq, state)
      >>> vq.apply(variables, jnp.array(codes[0, 3:5]), method="encode").tolist()
      [3, 4]

    Source: vector-quantize-pytorch 1.32 (names and shapes of its state dict).
    """
    arrays = read_state_dict(state)
    _check_parts(vq, arrays)
    arrays = _without_unset_statistics(_with_scalar_flags(arrays))
    fresh = vq.init(jax.random.key(0), jnp.zeros((1, _input_features(vq, arrays))))
    advice = "the axes of a codebook are [codebooks, num_codes, code_dim]. Construct the quantizer accordingly."
    check_entries(arrays, _expected_shapes(vq, fresh, arrays), advice)
    if not arrays["_codebook.initted"]:
        raise UserError(
            "_codebook.initted is False: this codebook still waits for k-means on its first batch, and holds zeros. "
            "Import it after a first forward pass there, or start afresh with the method kmeans_init."
        )
    _check_metric(vq.metric, arrays["_codebook.embed"], arrays["_codebook.cluster_size"])
    return jax.tree.map(jnp.array, _fill(vq, fresh, arrays))


def _check_parts(vq: VectorQuantizer, arrays: StateDict) -> None:
    """Refuses what has no counterpart, before the entries are compared one by one."""
    transform = vq.codebook_transform
    if transform is not None and not isinstance(transform, RunningAffine):
        raise UserError(
            f"codebook_transform={type(transform).__name__} is not allowed: a state holds nothing for it. "
            "Use RunningAffine where affine_param=True, or leave it out."
        )
    if "project_in.1.weight" in arrays:
        raise UserError("state has layernorm_after_project_in=True, which is not imported: no such layer exists here.")
    if any(key.startswith("_codebook.vq_bridge.") for key in arrays):
        raise UserError("state has a vq_bridge, which is not imported: write that module as a codebook_transform.")
    if "_codebook.embed" not in arrays:
        raise UserError(f"state has no entry '_codebook.embed': {_where_quantizers_are(arrays)}")
    for key, axes in (("_codebook.embed", 3), ("project_in.weight", 2)):
        if key in arrays and arrays[key].ndim != axes:
            raise UserError(f"{key} has shape {list(arrays[key].shape)}: in a state dict it has {axes} axes.")


def _where_quantizers_are(arrays: StateDict) -> str:
    prefixes = sorted(key.removesuffix("_codebook.embed") for key in arrays if key.endswith("._codebook.embed"))
    if not prefixes:
        return "pass the state dict of a VectorQuantize."
    first = repr(prefixes[0])
    return (
        f"there are quantizers under {prefixes}. Pass the entries of one, as "
        f"{{key.removeprefix({first}): value for key, value in state.items() if key.startswith({first})}}."
    )


def _with_scalar_flags(arrays: StateDict) -> StateDict:
    """Flags without axes; older releases saved them with one."""
    return {key: value.reshape(()) if key in FLAGS and value.size == 1 else value for key, value in arrays.items()}


def _without_unset_statistics(arrays: StateDict) -> StateDict:
    """Drops statistics that no training has set: uninitialized memory there, the state of ``init`` here."""
    if not arrays.get("_codebook.codebook_mean_needs_init", False):
        return arrays
    return {key: value for key, value in arrays.items() if key not in STATISTICS}


def _input_features(vq: VectorQuantizer, arrays: StateDict) -> int:
    if "project_in.weight" in arrays:
        return arrays["project_in.weight"].shape[1]
    return arrays["_codebook.embed"].shape[-1] * vq.heads


def _expected_shapes(vq: VectorQuantizer, fresh: Mapping[str, Any], arrays: StateDict) -> dict[str, tuple[int, ...]]:
    learned = vq.codebook_update == "gradient"
    codes = (fresh["params"] if learned else fresh["codebook"])["codes"].shape
    codes = codes if vq.separate_codebooks else (1, *codes)
    shapes = {"_codebook.initted": (), "_codebook.cluster_size": codes[:-1]}
    shapes |= {"_codebook.embed": codes, "_codebook.embed_avg": codes}
    if vq.code_dim is not None:
        for name in PROJECTIONS:
            features, outputs = fresh["params"][f"{name}_kernel"].shape
            shapes |= {f"{name}.weight": (outputs, features), f"{name}.bias": (outputs,)}
    if vq.codebook_transform is not None:
        shapes |= {"_codebook.codebook_mean_needs_init": (), "_codebook.codebook_variance_needs_init": ()}
        if not arrays.get("_codebook.codebook_mean_needs_init", False):
            shapes |= dict.fromkeys(STATISTICS, (codes[0], 1, codes[-1]))
    return shapes


def _check_metric(metric: str, codes: np.ndarray, counts: np.ndarray) -> None:
    """Tells the two metrics apart by the length of the codes, which is one under ``use_cosine_sim=True``."""
    lengths = np.linalg.norm(codes.astype(np.float64), axis=-1)
    if metric == "euclidean":
        if codes.shape[-1] > 1 and np.all(np.abs(lengths - 1) < 1e-3):
            raise UserError(
                "metric='euclidean' is not allowed: all codes have length one, so the state is that of "
                "use_cosine_sim=True. Use metric='cosine'."
            )
        return
    # Normalization there divides by at least 1e-6, so codes that have long been unused are shorter than one.
    unit, unused = np.abs(lengths - 1) < 1e-2, counts < 1e-6
    if not np.all(unit | ((lengths < 1) & unused)):
        raise UserError(
            f"metric='cosine' is not allowed: the lengths of the codes are {lengths.min():.3g} to {lengths.max():.3g}, "
            "so the state is that of use_cosine_sim=False. Use metric='euclidean'."
        )
    if not np.all(unit):
        raise UserError(
            f"{np.sum(~unit)} of {unit.size} codes in _codebook.embed are shorter than one: vector-quantize-pytorch "
            "shrinks unused codes to zero, which is no direction. Put unit vectors in their rows, such as copies of "
            "used codes, and set replace_dead_codes=True to put them to use."
        )


def _fill(vq: VectorQuantizer, fresh: Mapping[str, Any], arrays: StateDict) -> dict[str, Any]:
    def of_codebook(name: str) -> np.ndarray:
        array = arrays[name]
        return array if vq.separate_codebooks else array[0]

    params, codebook = dict(fresh.get("params", {})), dict(fresh["codebook"])
    (params if vq.codebook_update == "gradient" else codebook)["codes"] = of_codebook("_codebook.embed")
    counts = of_codebook("_codebook.cluster_size")
    if "counts" in codebook:
        codebook |= {"counts": counts, "sums": of_codebook("_codebook.embed_avg")}
    if "relative_usage" in codebook:
        average = np.mean(counts, axis=-1, keepdims=True)
        # Older releases start at counts of zero.
        codebook["relative_usage"] = np.divide(counts, average, out=np.ones_like(counts), where=average > 0)
    if vq.code_dim is not None:
        for name in PROJECTIONS:
            params[f"{name}_kernel"] = arrays[f"{name}.weight"].T
            params[f"{name}_bias"] = arrays[f"{name}.bias"]
    if STATISTICS.keys() <= arrays.keys():
        statistics = {ours: of_codebook(theirs)[..., 0, :] for theirs, ours in STATISTICS.items()}
        codebook["codebook_transform"] = statistics | {"batches": np.int32(1)}
    return {**fresh, "codebook": codebook} | ({"params": params} if params else {})
