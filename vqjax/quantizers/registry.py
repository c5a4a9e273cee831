"""The quantizers by their name in a config, with the fields of its group ``quantizer`` that each reads."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.functional.regularizers import Diversity, EntropyPenalty, Orthogonality
from vqjax.quantizers import (
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
    Replacement,
    Residual,
    RunningAffine,
    SimVQ,
    VectorQuantizer,
)
from vqjax.quantizers.codebooks import BaseCodebook

TRANSFORMS: dict[str, type[nn.Module]] = {
    "linear": LinearTransform,
    "learned_affine": LearnedAffine,
    "running_affine": RunningAffine,
}
"""The codebook transforms by their name in a config."""

REGULARIZERS = {
    "orthogonality_weight": Orthogonality,
    "diversity_weight": Diversity,
    "entropy_weight": EntropyPenalty,
}
"""The regularizers by the name of their weight in a config."""


class Family(NamedTuple):
    """A kind of quantizer.

    Attributes:
      fields: What it reads of the config's group ``quantizer``.
      build: From these fields, where they are not None, as keyword arguments.
    """

    fields: frozenset[str]
    build: Callable[..., nn.Module]


def _vector(kind: type[nn.Module], **options: Any) -> nn.Module:
    """Options by name become objects where the class takes objects."""
    weights = {name: options.pop(name) for name in REGULARIZERS if name in options}
    regularizers = tuple(REGULARIZERS[name](float(weight)) for name, weight in weights.items() if weight)
    if kind is not IBQ:
        for old, new in (("metric", "distance"), ("code_dim", "codebook_dim")):
            if old in options:
                options[new] = options.pop(old)
        options["sampling_temperature"] = options.pop("sampling_temperature", 0.0) or None
        if kind is SimVQ:
            options |= {"codebook_update": "none", "codebook_transform": "linear"}
        options["codebook"] = _codebook(options.pop("codebook_update", "ema"), options)
    return kind(**options, regularizers=regularizers)


def _codebook(update: str, options: dict[str, Any]) -> BaseCodebook:
    """Takes the options of a codebook out of those of its quantizer."""
    transform = options.pop("codebook_transform", "")
    own = {"transform": TRANSFORMS[transform]() if transform else None}
    threshold, decay = options.pop("dead_code_threshold", 0.01), options.pop("decay", 0.99)
    below = threshold if options.pop("replace_dead_codes", False) else None
    unused = options.pop("replace_unused_after", None)
    weight, sync_nu = options.pop("codebook_weight", 1.0), options.pop("synchronization", 0.0)
    smoothing = options.pop("ema_smoothing", 0.0)
    if smoothing and update != "ema":
        raise UserError(f"ema_smoothing={smoothing} is not allowed: only codebook_update='ema' has it.")
    if update != "none":
        replace = None if below is None and unused is None else Replacement(below, unused)
        own |= {"decay": decay, "dead_code_threshold": threshold, "replace": replace}
    own |= {"smoothing": smoothing} if update == "ema" else {"weight": weight, "sync_nu": sync_nu}
    return {"ema": EMACodebook, "gradient": GradientCodebook, "none": FrozenCodebook}[update](**own)


def _residual_vq(template: Callable[..., nn.Module], **options: Any) -> Residual:
    stages, options = _split(options, _RESIDUAL_VQ)
    if stages.pop("implicit_codebooks", False):
        stages["implicit_codebooks"] = ImplicitCodebook()
    if "code_dim" in stages:
        stages["codebook_dim"] = stages.pop("code_dim")
    stages["dropout"] = stages.pop("dropout", 0.0) or None
    return Residual(template(**options), **stages)


def _multi_scale_vq(**options: Any) -> MultiScaleVQ:
    own, options = _split(options, _MULTI_SCALE)
    own["dropout"] = own.pop("dropout", 0.0) or None
    return MultiScaleVQ(_vector(VectorQuantizer, **options), **own)


def _grouped(template: Callable[..., nn.Module], groups: int, **options: Any) -> Grouped:
    return Grouped(template(**options), groups=groups)


def _fsq(**options: Any) -> FSQ:
    options["noise_dropout"] = options.pop("noise_dropout", 0.0) or None
    return FSQ(**options)


def _random_projection(code_dim: int, **options: Any) -> RandomProjectionQuantizer:
    return RandomProjectionQuantizer(codebook_dim=code_dim, **options)


def _split(options: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {k: v for k, v in options.items() if k in names}, {k: v for k, v in options.items() if k not in names}


_LOOKUP = frozenset({"num_codes", "metric", "estimator", "commitment_weight", "codebook_weight", "synchronization"})
_LOOKUP |= {"sampling_temperature", "code_dim", *REGULARIZERS}
_UPDATED = {"codebook_update", "decay", "ema_smoothing", "codebook_transform"}
_UPDATED |= {"dead_code_threshold", "replace_dead_codes", "replace_unused_after"}
_VECTOR = _LOOKUP | _UPDATED
_RESIDUAL = frozenset({"num_quantizers", "gradient", "dropout"})
_RESIDUAL_VQ = _RESIDUAL | {"beam_size", "shared_codebook", "implicit_codebooks", "code_dim"}
_MULTI_SCALE = frozenset({"scales", "gradient", "dropout", "shared_codebook"})
_LEVELS = frozenset({"levels", "num_codebooks"})
_BITS = frozenset({"bits", "num_codebooks", "entropy_weight", "commitment_weight", "inverse_temperature"})
_GROUPS = frozenset({"groups"})

_residual_of_vectors = partial(_residual_vq, partial(_vector, VectorQuantizer))
_residual_fsq, _residual_lfq = partial(_residual_vq, FSQ), partial(_residual_vq, LFQ)

FAMILIES = {
    "vector": Family(
        _VECTOR | {"heads", "separate_codebooks", "kmeans_init", "codebook_shards"},
        partial(_vector, VectorQuantizer),
    ),
    "product_vq": Family(_VECTOR | {"heads", "kmeans_init"}, partial(_vector, ProductVQ)),
    "residual_vq": Family(_VECTOR | _RESIDUAL_VQ | {"kmeans_init"}, _residual_of_vectors),
    "grouped_residual_vq": Family(
        _VECTOR | _RESIDUAL_VQ | _GROUPS | {"kmeans_init"}, partial(_grouped, _residual_of_vectors)
    ),
    "sim_vq": Family(_LOOKUP, partial(_vector, SimVQ)),
    "residual_sim_vq": Family(
        _LOOKUP | _RESIDUAL_VQ - {"implicit_codebooks"}, partial(_residual_vq, partial(_vector, SimVQ))
    ),
    "ibq": Family(frozenset({"num_codes", *REGULARIZERS}), partial(_vector, IBQ)),
    "fsq": Family(_LEVELS | {"bound", "noise_dropout"}, _fsq),
    "residual_fsq": Family(_RESIDUAL | {"levels"}, _residual_fsq),
    "grouped_residual_fsq": Family(_RESIDUAL | {"levels"} | _GROUPS, partial(_grouped, _residual_fsq)),
    "fsp": Family(_LEVELS, FSP),
    "latent": Family(_LEVELS | {"commitment_weight"}, LatentQuantizer),
    "lfq": Family(_BITS, LFQ),
    "bsq": Family(_BITS, BSQ),
    "residual_lfq": Family(_BITS - {"num_codebooks"} | _RESIDUAL, _residual_lfq),
    "grouped_residual_lfq": Family(_BITS - {"num_codebooks"} | _RESIDUAL | _GROUPS, partial(_grouped, _residual_lfq)),
    "binary_mapper": Family(frozenset({"bits", "free_nats"}), BinaryMapper),
    "random_projection": Family(frozenset({"num_codes", "code_dim", "num_codebooks"}), _random_projection),
    "multi_scale_vq": Family(_VECTOR | _MULTI_SCALE | {"kmeans_init"}, _multi_scale_vq),
}
"""The quantizers by their name in a config."""


def build_quantizer(options: Mapping[str, Any] | ConfigDict) -> nn.Module:
    """Builds the quantizer that a config describes.

    Args:
      options: The config's group ``quantizer``: ``name``, and what the family reads; None stands for the class's own
        default, and other fields are not looked at.

    Returns:
      The module.

    Raises:
      UserError: The quantizer refuses its arguments.

    Example:
      >>> build_quantizer({"name": "vector", "num_codes": 16, "diversity_weight": 0.1}).regularizers
      (Diversity(weight=0.1, inverse_temperature=100.0),)
      >>> build_quantizer({"name": "fsq", "levels": (8, 5, 5)}).num_codes
      200
    """
    family = FAMILIES[options["name"]]
    # The trainer, not the module, starts codebooks from clusters.
    arguments = {k: v for k, v in options.items() if k in family.fields - {"kmeans_init"} and v is not None}
    return family.build(**arguments)
