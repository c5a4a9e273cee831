"""Quantizers of several: residual, grouped and hierarchical ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import StateDict, check_entries
from vqjax.importing.vector_quantize_pytorch.arguments import (
    ADVICE,
    DROPOUT,
    Arguments,
    Import,
    Imported,
    entries_beside,
    entries_under,
    merge,
    nest,
    projection_shapes,
    projections,
)
from vqjax.importing.vector_quantize_pytorch.codebooks import LAYOUT, SIM_VQ, VECTOR_QUANTIZE, sim_vq, vector_quantize
from vqjax.importing.vector_quantize_pytorch.grids import (
    FSQ_ARGUMENTS,
    LFQ_ARGUMENTS,
    build_fsq,
    build_lfq,
    state_of_lfq,
    state_shapes_of_lfq,
)
from vqjax.quantizers.grouped import Grouped
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.transforms import ImplicitCodebook
from vqjax.quantizers.validation import is_count, require, require_count

RESIDUAL_VQ = VECTOR_QUANTIZE.within(
    "ResidualVQ",
    DROPOUT
    | {"num_quantizers": None, "shared_codebook": False, "implicit_neural_codebook": False, "mlp_kwargs": {}}
    # Their search scores the sum of the errors over stages, the one here what is left in the end.
    | {"beam_size": None, "eval_beam_size": None},
    refused=frozenset({"diveq", "beam_score_quantizer_weights", "quant_grad_frac"}),
)
NETWORK = Arguments("MLP, the mlp_kwargs of a ResidualVQ", {"dim_hidden": None, "depth": 4})
RESIDUAL_SIM_VQ = SIM_VQ.within("ResidualSimVQ", DROPOUT | {"num_quantizers": None, "heads": 1})
RESIDUAL_FSQ = FSQ_ARGUMENTS.within(
    "ResidualFSQ",
    DROPOUT | {"num_quantizers": None, "soft_clamp_input_value": None, "bound_hard_clamp": True},
    refused=frozenset({"noise_dropout", "orthogonal_rotation"}),
)
RESIDUAL_LFQ = LFQ_ARGUMENTS.within("ResidualLFQ", DROPOUT | {"num_quantizers": None})
HIERARCHICAL_VQ = Arguments(
    "HierarchicalVQ",
    {
        "dim": None,
        "codebook_size": None,
        "scales": None,
        "shared_codebook": True,
        "decay": 0.99,
        "commitment_weight": 1.0,
        "rotation_trick": False,
        "threshold_ema_dead_code": 2,
        "quant_resi": 0.5,
        "share_quant_resi": 1,
        "nested_dropout": 0.0,
        "nested_dropout_min_levels": 1,
        "accept_image_fmap": False,
        "accept_3d_fmap": False,
        "stochastic_sample_codes": False,
        "sample_codebook_temp": 0.1,
    },
    ignored=frozenset(
        {"channel_first", "kmeans_init", "kmeans_iters", "sync_codebook"}
        | {"orthogonal_reg_max_codes", "orthogonal_reg_active_codes_only"}
    ),
    refused=frozenset({"orthogonal_reg_weight"}),
)


def residual_vq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``ResidualVQ``."""
    options = RESIDUAL_VQ.complete(config)
    for name in ("beam_size", "eval_beam_size"):
        advice = "it scores other sums there; leave it out, and set beam_size in a clone to search here"
        require(options[name] in (None, 1), f"config[{name!r}]", options[name], "None", advice)
    require(options["heads"] == 1, "config['heads']", options["heads"], "1 in a ResidualVQ")
    sizes = _sizes("codebook_size", options["codebook_size"], options["num_quantizers"])
    inner = options["codebook_dim"] or options["dim"]
    of_stage = {name: value for name, value in config.items() if name in VECTOR_QUANTIZE.known} | {"dim": inner}
    of_stage["codebook_dim"] = None
    implicit = _implicit_codebooks(options, inner)
    if implicit is not None:
        of_stage |= {"learnable_codebook": True, "ema_update": False}
    names = [f"layers.{i}." for i in range(len(sizes))]
    if options["shared_codebook"]:
        _check_one_codebook(arrays, names, prefix)
    parts = [
        vector_quantize(entries_under(arrays, name), of_stage | {"codebook_size": size}, f"{prefix}{name}")
        for name, size in zip(names[:1] if options["shared_codebook"] else names, sizes, strict=False)
    ]
    stages = [variables for _, variables in parts]
    networks = [f"mlps.{i}." for i in range(len(sizes) - 1 if implicit else 0)]
    for i, name in enumerate(networks, start=1):
        network = _network(entries_under(arrays, name), implicit, inner, f"{prefix}{name}")
        stages[i] = merge(stages[i], {"params": {"codebook_transform": network}})
    quantizer = Residual(
        parts[0][0],
        len(sizes),
        gradient="per_stage",
        stage_sizes=None if len(set(sizes)) == 1 else sizes,
        codebook_dim=None if inner == options["dim"] else inner,
        shared_codebook=bool(options["shared_codebook"]),
        implicit_codebooks=implicit,
        **_dropout(options, len(sizes)),
    )
    return quantizer, merge(
        _projected(arrays, [*names, *networks], options["dim"], inner, prefix), nest("stages", stages)
    )


def residual_sim_vq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``ResidualSimVQ``."""
    options = RESIDUAL_SIM_VQ.complete(config)
    require(options["heads"] == 1, "config['heads']", options["heads"], "1 in a ResidualSimVQ")
    of_stage = {name: value for name, value in config.items() if name in SIM_VQ.known}
    names = _names_of_stages(options)
    parts = [sim_vq(entries_under(arrays, name), of_stage, f"{prefix}{name}") for name in names]
    check_entries(entries_beside(arrays, names), {}, ADVICE, prefix)
    quantizer = Residual(parts[0][0], len(names), gradient="per_stage", **_dropout(options, len(names)))
    return quantizer, nest("stages", [variables for _, variables in parts])


def residual_fsq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``ResidualFSQ``."""
    options = RESIDUAL_FSQ.complete(config)
    names = _names_of_stages(options)
    require(options["num_codebooks"] == 1, "config['num_codebooks']", options["num_codebooks"], "1 in a ResidualFSQ")
    clamp = options["soft_clamp_input_value"]
    if isinstance(clamp, list | tuple):
        require(len(set(clamp)) == 1, "config['soft_clamp_input_value']", clamp, "the same for all features")
        clamp = clamp[0]
    template = build_fsq(options | {"preserve_symmetry": True})
    quantizer = Residual(template, len(names), gradient="per_stage", soft_clamp=clamp, **_dropout(options, len(names)))
    inner = template.code_features
    return quantizer, _projected(arrays, [], options["dim"] or inner, inner, prefix)


def residual_lfq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``ResidualLFQ``."""
    options = RESIDUAL_LFQ.complete(config)
    names = _names_of_stages(options)
    for name, only in (("num_codebooks", 1), ("codebook_scale", 1.0), ("has_projections", None)):
        require(options[name] == only, f"config[{name!r}]", options[name], f"{only} in a ResidualLFQ")
    template = build_lfq(options)
    stages = []
    for name in names:
        of_stage = entries_under(arrays, name)
        check_entries(of_stage, state_shapes_of_lfq(template), ADVICE, f"{prefix}{name}")
        stages.append(state_of_lfq(template, of_stage))
    inner = template.code_features
    variables = _projected(arrays, names, options["dim"] or inner, inner, prefix)
    quantizer = Residual(template, len(names), gradient="per_stage", **_dropout(options, len(names)))
    return quantizer, merge(variables, nest("stages", stages))


def grouped(part: Import) -> Import:
    """Return the importer of the grouped class over a class."""

    def import_grouped(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
        require(isinstance(config, Mapping), "config", config, "a mapping of argument names to values")
        groups, dim = config.get("groups", 1), config.get("dim")
        require_count("config['groups']", groups)
        require_count("config['dim']", dim)
        require(dim % groups == 0, "config['groups']", groups, f"a divisor of dim={dim}")
        of_group = {name: value for name, value in config.items() if name != "groups"} | {"dim": dim // groups}
        names = [f"rvqs.{i}." for i in range(groups)]
        parts = [part(entries_under(arrays, name), of_group, f"{prefix}{name}") for name in names]
        check_entries(entries_beside(arrays, names), {}, ADVICE, prefix)
        return Grouped(parts[0][0], groups), nest("parts", [variables for _, variables in parts])

    return import_grouped


def hierarchical_vq(arrays: StateDict, config: Mapping[str, Any], prefix: str = "") -> Imported:
    """Import a ``HierarchicalVQ``."""
    options = HIERARCHICAL_VQ.complete(config)
    scales = options["scales"]
    require(isinstance(scales, list | tuple), "config['scales']", scales, "a list of sizes, coarse to fine")
    size, *others = sorted(set(_sizes("codebook_size", options["codebook_size"], len(scales))))
    require(not others, "config['codebook_size']", options["codebook_size"], "the same for all scales")
    spatial_dims = 2 if options["accept_image_fmap"] else 3 if options["accept_3d_fmap"] else 1
    of_scale = {name: value for name, value in options.items() if name in VECTOR_QUANTIZE.known}
    of_scale = {**of_scale, "codebook_size": size}
    names = ["vq."] if options["shared_codebook"] else [f"vqs.{i}." for i in range(len(scales))]
    parts = [
        vector_quantize(entries_under(arrays, name), {k: v for k, v in of_scale.items() if k not in LAYOUT}, name)
        for name in names
    ]
    share = options["share_quant_resi"]
    count = len(scales) if share <= 0 else min(len(scales), int(share))
    convolutions = ["phi_shared.conv"] if share == 1 else [f"phi_levels.{i}.conv" for i in range(count)]
    dim, shapes = options["dim"], {}
    for name in convolutions:
        shapes |= {f"{name}.weight": (dim, dim, *(3,) * spatial_dims), f"{name}.bias": (dim,)}
    check_entries(entries_beside(arrays, names), shapes, ADVICE, prefix)
    # There, the convolutions are kept if they have no weight.
    weight = abs(options["quant_resi"]) or None
    phi = {f"phi_{i}": {"convolution": _convolution(arrays, name)} for i, name in enumerate(convolutions)}
    quantizer = MultiScaleVQ(
        parts[0][0],
        tuple(scales),
        spatial_dims,
        shared_codebook=bool(options["shared_codebook"]),
        phi_weight=weight,
        num_phi=None if share <= 0 else count,
        gradient="per_scale",
        dropout=options["nested_dropout"] or None,
        dropout_min_scales=options["nested_dropout_min_levels"] if options["nested_dropout"] else 1,
    )
    return quantizer, merge({"params": phi if weight else {}}, nest("stages", [variables for _, variables in parts]))


def _sizes(name: str, sizes: Any, count: int | None) -> tuple[int, ...]:
    """Return the number of codes of each stage."""
    if isinstance(sizes, list | tuple):
        require(count in (None, len(sizes)), f"config[{name!r}]", sizes, f"{count} numbers, one for each stage")
        return tuple(sizes)
    require(is_count(sizes), f"config[{name!r}]", sizes, "a positive integer, or one for each stage")
    require_count("config['num_quantizers']", count)
    return (sizes,) * count


def _names_of_stages(options: Mapping[str, Any]) -> list[str]:
    require_count("config['num_quantizers']", options["num_quantizers"])
    return [f"layers.{i}." for i in range(options["num_quantizers"])]


def _dropout(options: Mapping[str, Any], num_stages: int) -> dict[str, Any]:
    """Return the arguments of dropped stages; there, every training batch drops some."""
    if not options["quantize_dropout"] or num_stages == 1:
        return {}
    return {
        "dropout": 1.0,
        "dropout_min_stages": options["quantize_dropout_cutoff_index"] + 1,
        "dropout_multiple": options["quantize_dropout_multiple_of"],
    }


def _implicit_codebooks(options: Mapping[str, Any], dim: int) -> ImplicitCodebook | None:
    if not options["implicit_neural_codebook"]:
        return None
    network = NETWORK.complete(options["mlp_kwargs"])
    return ImplicitCodebook(depth=network["depth"], hidden=network["dim_hidden"] or dim)


def _network(arrays: StateDict, implicit: ImplicitCodebook, dim: int, prefix: str) -> dict[str, Any]:
    """Return the parameters of the network of a stage's implicit codebook."""
    layers = {"proj_in": (dim, 2 * dim)}
    for block in range(implicit.depth):
        layers |= {f"layers.{block}.0": (implicit.hidden, dim), f"layers.{block}.2": (dim, implicit.hidden)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    check_entries(arrays, shapes | {f"{name}.bias": shape[:1] for name, shape in layers.items()}, ADVICE, prefix)

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}

    network = {"joined": dense("proj_in")}
    # There the condition comes before the code, here after it.
    network["joined"]["kernel"] = np.roll(network["joined"]["kernel"], dim, axis=0)
    for block in range(implicit.depth):
        network |= {f"widen_{block}": dense(f"layers.{block}.0"), f"narrow_{block}": dense(f"layers.{block}.2")}
    return network


def _convolution(arrays: StateDict, name: str) -> dict[str, np.ndarray]:
    """Return a convolution, whose outputs and inputs are the last axes of the kernel here, and the first there."""
    return {"kernel": np.moveaxis(arrays[f"{name}.weight"], (0, 1), (-1, -2)), "bias": arrays[f"{name}.bias"]}


def _check_one_codebook(arrays: StateDict, names: list[str], prefix: str) -> None:
    """Refuse stages of a shared codebook that differ; files of shared tensors hold the first alone."""
    first = entries_under(arrays, names[0])
    for name in names[1:]:
        for key, value in entries_under(arrays, name).items():
            if key not in first or not np.array_equal(value, first[key]):
                raise UserError(
                    f"{prefix}{name}{key} must equal {prefix}{names[0]}{key} with shared_codebook=True, got other "
                    "numbers; leave shared_codebook out if every stage has its own."
                )


def _projected(arrays: StateDict, parts: list[str], outer: Any, inner: int, prefix: str) -> dict[str, Any]:
    """Check the entries other than those of the parts, and return the parameters of projections around all of them."""
    require_count("config['dim']", outer)
    own, shapes = entries_beside(arrays, parts), projection_shapes(outer, inner)
    check_entries(own, shapes, ADVICE, prefix)
    return {"params": projections(own)} if shapes else {}
