"""Registry of networks: each is a function of the arguments in the config group ``model``, and of a quantizer, or of
several by their places.

Example:
  >>> from vqjax import VectorQuantizer
  >>> defaults("sonnet", width=64)["latent_dim"]
  64
  >>> build(name="sonnet", width=64, quantizer=VectorQuantizer(num_codes=16)).encoder.width
  64
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from vqjax.errors import UserError
from vqjax.functional.tokens import TokenInfo
from vqjax.models.causal_video import CausalVideoDecoder, CausalVideoEncoder, NormName
from vqjax.models.classifiers import ClassifyingAlexNet, ResNet18, ViT
from vqjax.models.cnn import ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.layers import LARGEST_DIM
from vqjax.models.magvit import MAGVITDecoder, MAGVITEncoder, Variant
from vqjax.models.next_scale import NextScaleTransformer
from vqjax.models.timesformer import TimeSformerDecoder, TimeSformerEncoder
from vqjax.models.transformer import CausalTransformer, MaskedTransformer
from vqjax.models.vit import ViTDecoder, ViTEncoder
from vqjax.models.vqgan import VQGANDecoder, VQGANEncoder
from vqjax.models.vqvae import VQVAE, PixelsName
from vqjax.quantizers.registry import QUANTIZERS
from vqjax.quantizers.validation import require, require_count
from vqjax.runtime.signature import Registry, within

Dtype = Literal["float32", "bfloat16"]
Precision = Literal["default", "tensorfloat32", "float32"]


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
    """Build the autoencoder of the CIFAR-10 study in docs/reproduction.md.

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
    require_count("width", width, largest=LARGEST_DIM)
    if latent_dim is not None:
        require_count("latent_dim", latent_dim, largest=LARGEST_DIM)
    require_count("num_residual_blocks", num_residual_blocks, largest=100, smallest=0)
    require_count("num_scalings", num_scalings, largest=8)
    size = {"width": width, "num_residual_blocks": num_residual_blocks, "num_scalings": num_scalings, "dtype": dtype}
    require_count("image_channels", image_channels, largest=LARGEST_DIM)
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
    require_count("latent_dim", latent_dim, largest=LARGEST_DIM)
    require_count("width", width, largest=LARGEST_DIM, smallest=4)
    require_count("num_residual_blocks", num_residual_blocks, largest=100, smallest=0)
    size = {"width": width, "num_residual_blocks": num_residual_blocks, "dtype": dtype}
    require_count("image_channels", image_channels, largest=LARGEST_DIM)
    encoder = SonnetEncoder(**size, latent_dim=latent_dim)
    decoder = SonnetDecoder(**size, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, precision=precision)


def vqgan(
    quantizer: nn.Module,
    *,
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16,),
    resolution: int = 256,
    middle_attention: bool = True,
    latent_dim: int = 256,
    code_dim: int | None = None,
    code_norm: bool = False,
    dropout: float | None = None,
    remat: bool = False,
    pixels: PixelsName = "symmetric",
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of VQGAN; the defaults are taming-transformers' model for ImageNet.

    Args:
      quantizer: The quantizer of the latents.
      channels: Channels of the first level, a multiple of 32.
      multipliers: Channels of each level, from fine to coarse, as multiples of ``channels``; each level after the first
        halves height and width.
      num_res_blocks: Residual blocks of each level; the decoder has one more.
      attention_resolutions: Heights of feature maps at which levels have attention, for an image of ``resolution``.
      resolution: Height of the images for which the model is made.
      middle_attention: Attention at the coarsest level, in the middle of encoder and decoder.
      latent_dim: Features of the latents.
      code_dim: Features of the codes, by a 1x1 convolution before the quantizer and one behind it; None for the
        latents as they are.
      code_norm: Layer norm over the features of the codes, in front of the quantizer.
      dropout: Rate of dropout in the residual blocks; None for none.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      pixels: Pixels of the networks: ``"symmetric"`` are in [-1, 1], ``"unit"`` in [0, 1], ``"clip"`` normalized as
        CLIP's. Images are in [-1, 1] in any case.
      dtype: Dtype of the convolutions; parameters, norms and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` is TF32 on GPUs that have it, ``"float32"`` is exact.
      image_channels: Number of channels of the images.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vqgan(VectorQuantizer(num_codes=16), channels=32, code_dim=8).encoder.code_dim
      8

    Source: Esser et al., 2021 (arXiv 2012.09841); Rombach et al., 2022 (arXiv 2112.10752).
    """
    size = {
        "channels": channels,
        "multipliers": multipliers,
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": attention_resolutions,
        "resolution": resolution,
        "middle_attention": middle_attention,
        "dropout": dropout,
        "remat": remat,
        "dtype": dtype,
    }
    encoder = VQGANEncoder(**size, latent_dim=latent_dim, code_dim=code_dim, code_norm=code_norm)
    decoder_dim = None if code_dim is None else latent_dim
    decoder = VQGANDecoder(**size, latent_dim=decoder_dim, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, pixels=pixels, precision=precision)


def causal_video(
    quantizer: nn.Module,
    *,
    channels: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 2, 4),
    patch_size: int = 1,
    time_scalings: int = 2,
    norm: NormName = "group",
    num_res_blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (),
    resolution: int = 128,
    middle_attention: bool = True,
    latent_dim: int = 256,
    code_dim: int | None = None,
    code_norm: bool = False,
    dropout: float | None = None,
    remat: bool = False,
    pixels: PixelsName = "symmetric",
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of clips :class:`vqjax.models.causal_video.CausalVideoEncoder`, which never looks ahead.

    Args:
      quantizer: The quantizer of the latents.
      channels: Channels of the first level, a multiple of 32.
      multipliers: Channels of each level, from fine to coarse, as multiples of ``channels``; each level after the first
        halves height and width.
      patch_size: Height and width of the squares of pixels that the first convolution sees as features of one position;
        1 for single pixels, as image tokenizers.
      time_scalings: How often the number of frames is halved, at the finest levels first.
      norm: ``"group"``: norms over a frame, as of image tokenizers. ``"position"``: norms of each position, with which
        parts of a frame can be decoded alone if there is no attention.
      num_res_blocks: Residual blocks of each level; the decoder has one more.
      attention_resolutions: Heights of feature maps at which levels have attention within a frame.
      resolution: Height of the frames for which the model is made.
      middle_attention: Attention within a frame at the coarsest level.
      latent_dim: Features of the latents.
      code_dim: Features of the codes, by a 1x1 convolution before the quantizer and one behind it; None for the
        latents as they are.
      code_norm: Layer norm over the features of the codes, in front of the quantizer.
      dropout: Rate of dropout in the residual blocks; None for none.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      pixels: Pixels of the networks: ``"symmetric"`` are in [-1, 1], ``"unit"`` in [0, 1], ``"clip"`` normalized as
        CLIP's. Clips are in [-1, 1] in any case.
      dtype: Dtype of the convolutions; parameters, norms and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` is TF32 on GPUs that have it, ``"float32"`` is exact.
      image_channels: Number of channels of the frames.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> causal_video(VectorQuantizer(num_codes=16), channels=32, code_dim=8).encoder.time_scalings
      2
    """
    size = {
        "channels": channels,
        "multipliers": multipliers,
        "patch_size": patch_size,
        "time_scalings": time_scalings,
        "norm": norm,
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": attention_resolutions,
        "resolution": resolution,
        "middle_attention": middle_attention,
        "dropout": dropout,
        "remat": remat,
        "dtype": dtype,
    }
    encoder = CausalVideoEncoder(**size, latent_dim=latent_dim, code_dim=code_dim, code_norm=code_norm)
    decoder_dim = None if code_dim is None else latent_dim
    decoder = CausalVideoDecoder(**size, latent_dim=decoder_dim, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, pixels=pixels, precision=precision)


def vit_vqgan(
    quantizer: nn.Module,
    *,
    patch_size: int = 8,
    dim: int = 512,
    depth: int = 8,
    heads: int = 8,
    mlp_dim: int = 2048,
    code_dim: int = 32,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    decoder_mlp_dim: int | None = None,
    remat: bool = False,
    pixels: PixelsName = "symmetric",
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of ViT-VQGAN; the defaults are the small model of enhancing-transformers.

    Args:
      quantizer: The quantizer of the latents.
      patch_size: Height and width of a patch in pixels.
      dim: Features of a token.
      depth: Number of transformer blocks.
      heads: Heads of the attention, of 64 features each.
      mlp_dim: Hidden features of the two-layer networks.
      code_dim: Features of the codes.
      decoder_dim: ``dim`` of the decoder; None for that of the encoder. The large model has another decoder.
      decoder_depth: ``depth`` of the decoder.
      decoder_heads: ``heads`` of the decoder.
      decoder_mlp_dim: ``mlp_dim`` of the decoder.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      pixels: Pixels of the networks: ``"symmetric"`` are in [-1, 1], ``"unit"`` in [0, 1], ``"clip"`` normalized as
        CLIP's. Images are in [-1, 1] in any case.
      dtype: Dtype of the layers; parameters, norms and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` is TF32 on GPUs that have it, ``"float32"`` is exact.
      image_channels: Number of channels of the images.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vit_vqgan(VectorQuantizer(num_codes=16), depth=2).decoder.depth
      2

    Source: Yu et al., 2022 (arXiv 2110.04627).
    """
    options: dict[str, Any] = {"patch_size": patch_size, "remat": remat, "dtype": dtype}
    sizes = {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    encoder = ViTEncoder(**options, **sizes, code_dim=code_dim)
    of_decoder = {"dim": decoder_dim, "depth": decoder_depth, "heads": decoder_heads, "mlp_dim": decoder_mlp_dim}
    of_decoder = {name: size for name, size in of_decoder.items() if size is not None}
    for name, size in of_decoder.items():
        require_count(f"decoder_{name}", size, largest=LARGEST_DIM)
    decoder = ViTDecoder(**options, **sizes | of_decoder, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, pixels=pixels, precision=precision)


def timesformer(
    quantizer: nn.Module,
    *,
    patch_size: int = 2,
    dim: int = 256,
    depth: int = 8,
    heads: int = 4,
    mlp_dim: int = 768,
    code_dim: int = 32,
    remat: bool = False,
    pixels: PixelsName = "symmetric",
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the TimeSformer autoencoder of the rotation trick's video experiments, for clips.

    The defaults are those for BAIR, of 16 frames of 64 pixels; UCF-101, of 128 pixels, has ``patch_size=4``.

    Args:
      quantizer: The quantizer of the latents.
      patch_size: Height and width of a patch in pixels; a patch is of one frame.
      dim: Features of a token, a multiple of ``heads``.
      depth: Number of blocks, each with attention over time and over space.
      heads: Heads of the attention.
      mlp_dim: Hidden features of the two-layer networks.
      code_dim: Features of the codes.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      pixels: Pixels of the networks: ``"symmetric"`` are in [-1, 1], ``"unit"`` in [0, 1], ``"clip"`` normalized as
        CLIP's. Clips are in [-1, 1] in any case.
      dtype: Dtype of the layers; parameters, norms and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` is TF32 on GPUs that have it, ``"float32"`` is exact.
      image_channels: Number of channels of the clips.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> timesformer(VectorQuantizer(num_codes=16), depth=2).decoder.depth
      2

    Source: Fifty et al., ICLR 2025 (arXiv 2410.06424), Tables 5 and 11; Bertasius et al., 2021 (arXiv 2102.05095).
    """
    size = {"patch_size": patch_size, "dim": dim, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    size |= {"remat": remat, "dtype": dtype}
    encoder = TimeSformerEncoder(**size, code_dim=code_dim)
    decoder = TimeSformerDecoder(**size, image_channels=image_channels)
    return VQVAE(encoder, quantizer, decoder, pixels=pixels, precision=precision)


def magvit(
    quantizer: nn.Module,
    *,
    variant: Variant = "maskgit",
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    latent_dim: int = 256,
    remat: bool = False,
    pixels: PixelsName = "symmetric",
    dtype: Dtype = "float32",
    precision: Precision = "default",
    image_channels: int = 3,
) -> VQVAE:
    """Build the autoencoder of MaskGIT or Open-MAGVIT2, without attention; the defaults are MaskGIT's.

    Args:
      quantizer: The quantizer of the latents.
      variant: ``"maskgit"``, or ``"open_magvit2"``, which has four blocks in a level.
      channels: Channels of the first level, a multiple of 32.
      multipliers: Channels of each level, from fine to coarse, as multiples of ``channels``; each level after the first
        halves height and width.
      num_res_blocks: Residual blocks of each level.
      latent_dim: Features of the latents.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      pixels: Pixels of the networks: ``"symmetric"`` are in [-1, 1], ``"unit"`` in [0, 1], ``"clip"`` normalized as
        CLIP's. Images are in [-1, 1] in any case.
      dtype: Dtype of the convolutions; parameters, norms and quantizer are in float32.
      precision: Precision of float32 products; ``"default"`` is TF32 on GPUs that have it, ``"float32"`` is exact.
      image_channels: Number of channels of the images.

    Returns:
      The module, without variables.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> from vqjax import LFQ
      >>> magvit(LFQ(bits=18), variant="open_magvit2", num_res_blocks=4, latent_dim=18).encoder.latent_dim
      18

    Source: Chang et al., 2022 (arXiv 2202.04200); Luo et al., 2024 (arXiv 2409.04410).
    """
    size = {"variant": variant, "channels": channels, "multipliers": multipliers, "num_res_blocks": num_res_blocks}
    size |= {"remat": remat, "dtype": dtype}
    encoder, decoder = (
        MAGVITEncoder(**size, latent_dim=latent_dim),
        MAGVITDecoder(**size, image_channels=image_channels),
    )
    return VQVAE(encoder, quantizer, decoder, pixels=pixels, precision=precision)


def resnet18(
    quantizers: Mapping[str, nn.Module],
    *,
    num_classes: int = 10,
    stem: Literal["cifar", "imagenet"] = "cifar",
    width: int = 64,
    dtype: Dtype = "float32",
) -> ResNet18:
    """Build the classifier :class:`vqjax.models.classifiers.ResNet18`, with quantizers by place."""
    return ResNet18(num_classes, quantizers, dtype, stem, width)


def alexnet(
    quantizers: Mapping[str, nn.Module],
    *,
    num_classes: int = 10,
    stem: Literal["cifar", "imagenet"] = "cifar",
    hidden: int = 4096,
    dropout: float | None = 0.5,
    dtype: Dtype = "float32",
) -> ClassifyingAlexNet:
    """Build the classifier :class:`vqjax.models.classifiers.ClassifyingAlexNet`, with quantizers by place."""
    return ClassifyingAlexNet(num_classes, quantizers, dtype, stem, hidden, dropout)


def vit(
    quantizers: Mapping[str, nn.Module],
    *,
    num_classes: int = 10,
    patch_size: int = 4,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    mlp_dim: int = 768,
    dtype: Dtype = "float32",
) -> ViT:
    """Build the classifier :class:`vqjax.models.classifiers.ViT`, with quantizers by place; by default ViT-Tiny."""
    return ViT(num_classes, quantizers, dtype, patch_size, dim, depth, heads, mlp_dim)


def causal_transformer(
    tokens: TokenInfo,
    *,
    dim: int = 384,
    depth: int = 6,
    heads: int = 6,
    mlp_dim: int | None = None,
    factors: tuple[int, ...] | None = None,
    head_depth: int = 2,
    tied: bool = False,
    dropout: float = 0.0,
    remat: bool = False,
    dtype: Dtype = "float32",
) -> CausalTransformer:
    """Build :class:`vqjax.models.transformer.CausalTransformer` for the tokens of a data set.

    ``factors=(512, 512)`` divides codes of 262,144 into two digits, which it draws one after the other.
    """
    size = {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": mlp_dim, "head_depth": head_depth, "tied": tied}
    return CausalTransformer(**_of_tokens(tokens, factors), **size, dropout=dropout, remat=remat, dtype=dtype)


def masked_transformer(
    tokens: TokenInfo,
    *,
    dim: int = 384,
    depth: int = 6,
    heads: int = 6,
    mlp_dim: int | None = None,
    factors: tuple[int, ...] | None = None,
    dropout: float = 0.1,
    remat: bool = False,
    dtype: Dtype = "float32",
) -> MaskedTransformer:
    """Build :class:`vqjax.models.transformer.MaskedTransformer` for the tokens of a data set.

    ``factors=(512, 512)`` divides codes of 262,144 into two digits, which it draws independently.
    """
    size = {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return MaskedTransformer(**_of_tokens(tokens, factors), **size, dropout=dropout, remat=remat, dtype=dtype)


def next_scale_transformer(
    tokens: TokenInfo,
    *,
    dim: int = 384,
    depth: int = 6,
    heads: int = 6,
    mlp_dim: int | None = None,
    dropout: float = 0.0,
    remat: bool = False,
    dtype: Dtype = "float32",
) -> NextScaleTransformer:
    """Build :class:`vqjax.models.next_scale.NextScaleTransformer` for the tokens of a data set."""
    if tokens.scales is None:
        raise UserError(
            "name must be that of a transformer for a grid of tokens, as these have no scales of a MultiScaleVQ; "
            "vqjax tokens notes them, files of --export_tokens do not."
        )
    of_tokens = {"num_codes": tokens.num_codes[0], "scales": tokens.scales, "code_dim": tokens.code_dim}
    size = {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    size |= {"dropout": dropout, "remat": remat, "dtype": dtype}
    return NextScaleTransformer(**of_tokens, num_classes=tokens.num_classes, **size)


def _of_tokens(tokens: TokenInfo, factors: tuple[int, ...] | None) -> dict[str, Any]:
    """What the tokens of a data set say about a transformer."""
    if tokens.scales is not None or len(tokens.grid) != 2:
        shape = list(tokens.shape)
        raise UserError(
            f"name must be that of a transformer for tokens of shape {shape}, got one for those of an image, rows x "
            "columns; next_scale_transformer is for images of MultiScaleVQ, and there is none for clips yet."
        )
    num_codes = tokens.num_codes if len(tokens.num_codes) > 1 else tokens.num_codes[0]  # pyright: ignore[reportGeneralTypeIssues]
    if factors is not None:
        require(math.prod(factors) == num_codes, "factors", factors, f"numbers whose product is {num_codes}, or None")
    return {"num_codes": factors or num_codes, "grid": tokens.grid, "num_classes": tokens.num_classes}


AUTOENCODERS = {
    "residual": residual,
    "sonnet": sonnet,
    "vqgan": vqgan,
    "vit_vqgan": vit_vqgan,
    "magvit": magvit,
    "causal_video": causal_video,
    "timesformer": timesformer,
}
"""The autoencoders by name."""

CLASSIFIERS = {"resnet18": resnet18, "alexnet": alexnet, "vit": vit}
"""The classifiers by name."""

TRANSFORMERS = {
    "causal_transformer": causal_transformer,
    "masked_transformer": masked_transformer,
    "next_scale_transformer": next_scale_transformer,
}
"""The transformers over tokens by name."""

MODELS = Registry(AUTOENCODERS | CLASSIFIERS | TRANSFORMERS)
"""All networks by name."""

defaults, build = MODELS.defaults, MODELS.build


def build_model(model: Any, quantizer: Any) -> nn.Module:
    """Build the autoencoder or classifier that a config describes.

    Args:
      model: The group ``model`` of the config.
      quantizer: The group ``quantizer``: of classifiers, a dictionary of such groups by place, which may be empty.

    Returns:
      The module, without variables.

    Raises:
      UserError: A field cannot be used; the message begins with its path in the config.

    Example:
      >>> build_model({"name": "sonnet", "width": 8}, {"name": "vq", "num_codes": 16}).quantizer.num_codes
      16
    """
    if model["name"] not in CLASSIFIERS:
        with within("config.quantizer"):
            built = QUANTIZERS.build(**quantizer)
        with within("config.model"):
            return build(**model, quantizer=built)
    if not all(hasattr(group, "items") for group in quantizer.values()):
        raise UserError(
            f"config.quantizer must be a dictionary by place for the classifier {model['name']!r}, got one quantizer; "
            'write config.quantizer = dict(PLACE=quantizers.defaults("vq", ...)), or dict() for none.'
        )
    by_place = {}
    for place, group in quantizer.items():
        with within(f"config.quantizer.{place}"):
            by_place[place] = QUANTIZERS.build(**group)
    with within("config.model"):
        return build(**model, quantizers=by_place)


def build_transformer(model: Any, tokens: TokenInfo) -> nn.Module:
    """Build the transformer that a config describes.

    Args:
      model: The group ``model`` of the config.
      tokens: What its data are.

    Returns:
      The module, without variables.

    Raises:
      UserError: A field cannot be used; the message begins with its path in the config.

    Example:
      >>> tokens = TokenInfo(num_codes=(16,), shape=(4, 4))
      >>> build_transformer({"name": "causal_transformer", "dim": 64, "heads": 2}, tokens).positions
      16
    """
    with within("config.model"):
        return build(**model, tokens=tokens)


def describe(model: VQVAE, config: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return the config groups of an autoencoder: the inverse of :func:`build_model`.

    Args:
      model: An autoencoder of one of the functions above, or of the config.
      config: A config that may have made it, such as that of its run; its model may be one of the user's.

    Returns:
      The groups ``model`` and ``quantizer``.

    Raises:
      UserError: No config holds such a model.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> groups = describe(sonnet(VectorQuantizer(num_codes=16), width=8))
      >>> groups["model"]["name"], groups["model"]["width"], groups["quantizer"]["num_codes"]
      ('sonnet', 8, 16)
    """

    def argument(field: str) -> Any:
        # What only the decoder has is named after it.
        places = [(model.encoder, field), (model.decoder, field), (model, field)]
        places += [(model.decoder, field.removeprefix("decoder_"))]
        return next(getattr(module, name) for module, name in places if hasattr(module, name))

    if config is not None and {"model", "quantizer"} <= config.keys():
        groups = {name: dict(config[name]) for name in ("model", "quantizer")}
        with contextlib.suppress(UserError, KeyError, TypeError):
            if build_model(**groups) == model.clone(microbatches=1):
                return groups
    quantizer = QUANTIZERS.complete(model.quantizer)
    for name in AUTOENCODERS:
        with contextlib.suppress(StopIteration, UserError):
            group = defaults(name, **{field: argument(field) for field in MODELS.call(name).fields})
            if build_model(group, quantizer) == model.clone(microbatches=1):
                return {"model": group, "quantizer": quantizer}
    raise UserError(
        f"model must be one that a config can hold, got {type(model.encoder).__name__} and "
        f"{type(model.decoder).__name__} around {type(model.quantizer).__name__}."
    )
