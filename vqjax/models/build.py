"""Builds the autoencoder that a config describes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.models.autoencoder import VQVAE
from vqjax.models.residual import ResidualDecoder, ResidualEncoder
from vqjax.models.sonnet import SonnetDecoder, SonnetEncoder
from vqjax.quantizers import EMA, LearnedAffine, LinearTransform, RunningAffine, VectorQuantizer
from vqjax.regularizers import Diversity, EntropyPenalty, Orthogonality

QUANTIZERS: dict[str, type[nn.Module]] = {"vector": VectorQuantizer}
"""The quantizers by their name in a config."""

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

ENCODERS = ("residual", "sonnet")
"""The architectures by their name in a config."""


def build_model(model: Mapping[str, Any] | ConfigDict, quantizer: Mapping[str, Any] | ConfigDict) -> VQVAE:
    """Builds the autoencoder.

    Args:
      model: The config's group ``model``.
      quantizer: The config's group ``quantizer``: ``name`` and the arguments of that class.

    Returns:
      The module, without variables.

    Raises:
      UserError: The quantizer refuses its arguments.

    Example:
      >>> options = {"name": "sonnet", "width": 8, "num_residual_blocks": 2, "num_scalings": 2, "code_dim": 4}
      >>> build_model(options, {"name": "vector", "num_codes": 16}).quantizer.num_codes
      16
    """
    module = build_quantizer(quantizer)
    size = {"width": model["width"], "num_residual_blocks": model["num_residual_blocks"]}
    if model["name"] == "sonnet":
        encoder = SonnetEncoder(**size, code_dim=model["code_dim"] or model["width"])
        return VQVAE(encoder, module, SonnetDecoder(**size))
    size["num_scalings"] = model["num_scalings"]
    return VQVAE(ResidualEncoder(**size, code_dim=model["code_dim"]), module, ResidualDecoder(**size))


def build_quantizer(options: Mapping[str, Any] | ConfigDict) -> nn.Module:
    """Builds the quantizer: options by name become objects where the class takes objects.

    Args:
      options: The config's group ``quantizer``.

    Returns:
      The module.

    Raises:
      UserError: The quantizer refuses its arguments.

    Example:
      >>> build_quantizer({"name": "vector", "num_codes": 16, "diversity_weight": 0.1}).regularizers
      (Diversity(weight=0.1, inverse_temperature=100.0),)
    """
    arguments = {k: v for k, v in options.items() if k not in ("name", "kmeans_init")}
    weights = {name: arguments.pop(name, 0.0) for name in REGULARIZERS}
    arguments["regularizers"] = tuple(REGULARIZERS[name](float(weight)) for name, weight in weights.items() if weight)
    transform = arguments.pop("codebook_transform", "")
    arguments["codebook_transform"] = TRANSFORMS[transform]() if transform else None
    smoothing = arguments.pop("ema_smoothing", 0.0)
    if smoothing:
        if arguments.get("codebook_update", "ema") != "ema":
            raise UserError(f"ema_smoothing={smoothing} is not allowed: only codebook_update='ema' has it.")
        arguments["codebook_update"] = EMA(smoothing=float(smoothing))
    return QUANTIZERS[options["name"]](**arguments)
