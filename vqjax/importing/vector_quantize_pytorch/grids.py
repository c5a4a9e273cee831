"""Quantizers without a codebook: ``FSQ``, ``FSP``, ``LFQ``, ``LatentQuantize`` and ``BinaryMapper``."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.importing.state_dict import StateDict, check_entries
from vqjax.importing.vector_quantize_pytorch.arguments import (
    ADVICE,
    Arguments,
    Imported,
    projection_shapes,
    projections,
)
from vqjax.importing.vector_quantize_pytorch.codebooks import LAYOUT
from vqjax.quantizers.binary import BSQ, LFQ, BinaryMapper
from vqjax.quantizers.scalar import FSP, FSQ, LatentQuantizer
from vqjax.quantizers.validation import require, require_choice, require_count

# The shape of indices and their being returned; precision, which is float32 here; the axis of a single codebook.
_OUTPUT = frozenset({"return_indices", "allowed_dtypes", "force_quantization_f32", "keep_num_codebooks_dim"})

FSQ_ARGUMENTS = Arguments(
    "FSQ",
    {
        "levels": None,
        "dim": None,
        "num_codebooks": 1,
        "projection_has_bias": True,
        "preserve_symmetry": False,
        "noise_dropout": 0.0,
        "bound_hard_clamp": False,
        "orthogonal_rotation": False,
    },
    ignored=LAYOUT | _OUTPUT | {"scale"},  # stored there, and never used
)
LFQ_ARGUMENTS = Arguments(
    "LFQ",
    {
        "dim": None,
        "codebook_size": None,
        "entropy_loss_weight": 0.1,
        "commitment_loss_weight": 0.0,
        "diversity_gamma": 1.0,
        "num_codebooks": 1,
        "codebook_scale": 1.0,
        "has_projections": None,
        "projection_has_bias": True,
        "soft_clamp_input_value": None,
        "spherical": False,
        "orthogonal_rotation": False,
    },
    # The entropy over all tokens needs no more memory here than that over a fraction of them there.
    ignored=LAYOUT | _OUTPUT | {"frac_per_sample_entropy", "entropy_loss_offset", "cosine_sim_project_in_scale"},
    refused=frozenset({"straight_through_activation", "cosine_sim_project_in", "experimental_softplus_entropy_loss"}),
)
FSP_ARGUMENTS = Arguments(
    "FSP",
    {
        "levels": None,
        "dim": None,
        "projection_has_bias": True,
        "act_name": "tanh",
        "quantize_rate": 0.0,
        "need_inv_act": False,
        "vector_norm": "var_tanh",
    },
    ignored=LAYOUT,
)
LATENT_QUANTIZE = Arguments(
    "LatentQuantize",
    {
        "levels": None,
        "dim": None,
        "commitment_loss_weight": 0.1,
        "quantization_loss_weight": 0.1,
        "num_codebooks": 1,
        "codebook_dim": -1,
        "optimize_values": True,
    },
    ignored=_OUTPUT,
    refused=frozenset({"in_place_codebook_optimizer"}),
)
BINARY_MAPPER = Arguments(
    "BinaryMapper", {"bits": 1, "kl_loss_threshold": math.log(2)}, ignored=frozenset({"deterministic_on_eval"})
)
_MOMENTS = {
    "none": None,
    "var": "variance",
    "kurt": "kurtosis",
    "var_tanh": "tanh",
    "var_sigmoid": "sigmoid",
    "var_laplace": "laplace",
}


def fsq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import an ``FSQ``."""
    options = FSQ_ARGUMENTS.complete(config)
    quantizer = build_fsq(options)
    shapes, state = {}, {}
    if quantizer.orthogonal_rotation:
        shapes["orthogonal_rot"] = (len(quantizer.levels),) * 2
    params = _projected(arrays, options, quantizer.code_features, shapes, prefix)
    if quantizer.orthogonal_rotation:
        state = {"codebook": {"rotation": arrays["orthogonal_rot"]}}
    return quantizer, params | state


def build_fsq(options: Mapping[str, Any]) -> FSQ:
    """Return the quantizer of completed arguments."""
    return FSQ(
        levels=_levels(options["levels"]),
        num_codebooks=options["num_codebooks"],
        bound="symmetric" if options["preserve_symmetry"] else "asymmetric",
        hard_clamp=bool(options["bound_hard_clamp"]),
        noise_dropout=options["noise_dropout"] or None,
        orthogonal_rotation=options["orthogonal_rotation"],
    )


def fsp(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import an ``FSP``."""
    options = FSP_ARGUMENTS.complete(config)
    require_choice("config['vector_norm']", options["vector_norm"], _MOMENTS)
    quantizer = FSP(
        levels=_levels(options["levels"]),
        activation=options["act_name"],
        quantize_rate=options["quantize_rate"],
        invert=options["need_inv_act"],
        moments=_MOMENTS[options["vector_norm"]],
    )
    return quantizer, _projected(arrays, options, quantizer.code_features, {}, prefix)


def lfq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import an ``LFQ``."""
    options = LFQ_ARGUMENTS.complete(config)
    quantizer = build_lfq(options)
    dim, features, projected = options["dim"], quantizer.code_features, options["has_projections"]
    differs = dim not in (None, features)
    advice = "vqjax has linear maps only if the numbers of features differ"
    require(projected in (None, differs), "config['has_projections']", projected, f"{differs}, or left out", advice)
    params = _projected(arrays, options, features, state_shapes_of_lfq(quantizer), prefix)
    return quantizer, params | state_of_lfq(quantizer, arrays)


def build_lfq(options: Mapping[str, Any]) -> LFQ:
    """Return the quantizer of completed arguments: a ``BSQ`` if ``spherical=True``."""
    size = options["codebook_size"]
    if size is None:
        require_count("config['dim']", options["dim"], advice="or give codebook_size")
        size = 2 ** options["dim"]
    require_count("config['codebook_size']", size)
    bits = size.bit_length() - 1
    require(size == 2**bits, "config['codebook_size']", size, "a power of two")
    return (BSQ if options["spherical"] else LFQ)(
        bits=bits,
        num_codebooks=options["num_codebooks"],
        scale=options["codebook_scale"],
        entropy_weight=options["entropy_loss_weight"],
        diversity_gamma=options["diversity_gamma"],
        commitment_weight=options["commitment_loss_weight"],
        soft_clamp=options["soft_clamp_input_value"],
        orthogonal_rotation=options["orthogonal_rotation"],
    )


def state_shapes_of_lfq(quantizer: LFQ) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries of an ``LFQ`` besides its projections."""
    shapes: dict[str, tuple[int, ...]] = {"mask": (quantizer.bits,)}
    return shapes | ({"orthogonal_rot": (quantizer.bits,) * 2} if quantizer.orthogonal_rotation else {})


def state_of_lfq(quantizer: LFQ, arrays: StateDict) -> dict[str, Any]:
    """Return the variables of an ``LFQ`` besides its projections."""
    return {"codebook": {"rotation": arrays["orthogonal_rot"]}} if quantizer.orthogonal_rotation else {}


def latent_quantize(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``LatentQuantize``."""
    options = LATENT_QUANTIZE.complete(config)
    levels = options["levels"]
    levels = _levels((levels,) * options["codebook_dim"] if isinstance(levels, int) else levels)
    quantizer = LatentQuantizer(
        levels=levels,
        num_codebooks=options["num_codebooks"],
        commitment_weight=options["commitment_loss_weight"],
        quantization_weight=options["quantization_loss_weight"],
        learn_values=bool(options["optimize_values"]),
    )
    names = [f"values_per_latent.{i}" for i in range(len(levels) if quantizer.learn_values else 0)]
    shapes = {name: (count,) for name, count in zip(names, levels, strict=False)}
    variables = _projected(arrays, options, quantizer.code_features, shapes, prefix)
    if not names:
        return quantizer, variables
    values = {"code_values": np.concatenate([arrays[name] for name in names])}
    return quantizer, {"params": variables.get("params", {}) | values}


def binary_mapper(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``BinaryMapper``."""
    options = BINARY_MAPPER.complete(config)
    check_entries(arrays, {}, ADVICE, prefix)
    return BinaryMapper(bits=options["bits"], free_nats=options["kl_loss_threshold"]), {}


def _levels(levels: Any) -> tuple[int, ...]:
    require(isinstance(levels, list | tuple), "config['levels']", levels, "a list of integers, such as [8, 5, 5]")
    return tuple(levels)


def _projected(
    arrays: StateDict,
    options: Mapping[str, Any],
    features: int,
    others: dict[str, tuple[int, ...]],
    prefix: str,
) -> dict[str, Any]:
    """Check the entries of projections and of all others, and return the parameters of the projections."""
    dim = features if options["dim"] is None else options["dim"]
    require_count("config['dim']", dim)
    shapes = projection_shapes(dim, features, options.get("projection_has_bias", True))
    check_entries(arrays, shapes | others, ADVICE, prefix)
    return {"params": projections(arrays)} if shapes else {}
