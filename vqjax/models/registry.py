"""Registry of autoencoders: each is a function of a quantizer and of the arguments in the config group ``model``.

Example:
  >>> from vqjax import VectorQuantizer
  >>> defaults("sonnet", width=64)["latent_dim"]
  64
  >>> build(name="sonnet", width=64, quantizer=VectorQuantizer(num_codes=16)).encoder.width
  64
"""

from typing import Any, Literal

import flax.linen as nn

from vqjax import quantizers
from vqjax.errors import UserError
from vqjax.models.cnn import ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.vqvae import VQVAE
from vqjax.runtime.signature import Registry, within

Dtype = Literal["float32", "bfloat16"]
Precision = Literal["default", "tensorfloat32", "float32"]

LARGEST_DIM = 2**13


def residual(
    quantizer: nn.Module,
    *,
    width: int = 256,
    num_residual_blocks: int = 2,
    num_scalings: int = 2,
    latent_dim: int | None = None,
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of the rotation trick's CIFAR-10 experiments.

    Args:
      quantizer: The quantizer of the latents.
      width: Number of channels of the latent grid.
      num_residual_blocks: Number of residual blocks in the encoder, and in the decoder.
      num_scalings: Number of strided convolutions; each halves height and width.
      latent_dim: Number of latent features, produced by a 1x1 convolution; with None, the latents have ``width``
        features and there is no such convolution.
      dtype: Dtype of the convolutions; parameters and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` uses TF32 on GPUs that support it, ``"float32"`` always
        uses full float32 precision.
      image_channels: Number of channels of the images.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> residual(VectorQuantizer(num_codes=16), width=64).encoder.num_scalings
      2
    """
    _check_number("width", width, 1, LARGEST_DIM)
    if latent_dim is not None:
        _check_number("latent_dim", latent_dim, 1, LARGEST_DIM)
    _check_number("num_residual_blocks", num_residual_blocks, 0, 100)
    _check_number("num_scalings", num_scalings, 1, 8)
    size = {"width": width, "num_residual_blocks": num_residual_blocks, "num_scalings": num_scalings, "dtype": dtype}
    _check_number("image_channels", image_channels, 1, LARGEST_DIM)
    encoder = ResidualEncoder(**size, latent_dim=latent_dim)
    decoder = ResidualDecoder(**size, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, precision=precision)


def sonnet(
    quantizer: nn.Module,
    *,
    width: int = 128,
    num_residual_blocks: int = 2,
    latent_dim: int = 64,
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of Sonnet's VQ-VAE example, whose latent grid is four times smaller than the image.

    Args:
      quantizer: The quantizer of the latents.
      width: Number of channels of the latent grid.
      num_residual_blocks: Number of residual blocks in the encoder, and in the decoder.
      latent_dim: Number of latent features.
      dtype: Dtype of the convolutions; parameters and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` uses TF32 on GPUs that support it, ``"float32"`` always
        uses full float32 precision.
      image_channels: Number of channels of the images.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> sonnet(VectorQuantizer(num_codes=16), width=64).encoder.width
      64
    """
    _check_number("latent_dim", latent_dim, 1, LARGEST_DIM)
    _check_number("width", width, 4, LARGEST_DIM)
    _check_number("num_residual_blocks", num_residual_blocks, 0, 100)
    size = {"width": width, "num_residual_blocks": num_residual_blocks, "dtype": dtype}
    _check_number("image_channels", image_channels, 1, LARGEST_DIM)
    encoder = SonnetEncoder(**size, latent_dim=latent_dim)
    decoder = SonnetDecoder(**size, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, precision=precision)


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} must be an integer from {low} to {high}, got {value}.")


MODELS = Registry({"residual": residual, "sonnet": sonnet})
"""The autoencoders by name."""

defaults, build = MODELS.defaults, MODELS.build


def build_model(model: Any, quantizer: Any) -> nn.Module:
    """Build the autoencoder that a config describes.

    Args:
      model: The group ``model`` of the config.
      quantizer: The group ``quantizer``.

    Returns:
      The module, without variables.

    Raises:
      UserError: A field cannot be used; the message begins with its path in the config.

    Example:
      >>> build_model({"name": "sonnet", "width": 8}, {"name": "vq", "num_codes": 16}).quantizer.num_codes
      16
    """
    with within("config.quantizer"):
        built = quantizers.build(**quantizer)
    with within("config.model"):
        return build(**model, quantizer=built)
