"""Builds the autoencoder that a config describes."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.models.cnn import ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.vqvae import VQVAE
from vqjax.quantizers.registry import build_quantizer

ENCODERS = ("residual", "sonnet")
"""The architectures by their name in a config."""


def build_model(model: Mapping[str, Any] | ConfigDict, quantizer: Mapping[str, Any] | ConfigDict) -> VQVAE:
    """Builds the autoencoder.

    Args:
      model: The config's group ``model``.
      quantizer: The config's group ``quantizer``: see :func:`vqjax.quantizers.registry.build_quantizer`.

    Returns:
      The module, without variables.

    Raises:
      UserError: The quantizer refuses its arguments.

    Example:
      >>> options = {"name": "sonnet", "width": 8, "num_residual_blocks": 2, "num_scalings": 2, "code_dim": 4}
      >>> build_model(options, {"name": "vector", "num_codes": 16}).quantizer.num_codes
      16
    """
    try:
        module = build_quantizer(quantizer)
    except UserError as error:
        raise UserError(f"config.quantizer cannot be built: {error}") from error
    size = {"width": model["width"], "num_residual_blocks": model["num_residual_blocks"]}
    size["dtype"] = model.get("dtype")
    if model["name"] == "sonnet":
        encoder = SonnetEncoder(**size, code_dim=model["code_dim"] or model["width"])
        decoder = SonnetDecoder(**size)
    else:
        size["num_scalings"] = model["num_scalings"]
        encoder, decoder = ResidualEncoder(**size, code_dim=model["code_dim"]), ResidualDecoder(**size)
    return VQVAE(encoder, module, decoder, precision=model.get("precision", "default"))
