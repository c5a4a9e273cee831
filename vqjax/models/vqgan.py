"""Encoder and decoder of VQGAN, as taming-transformers and latent diffusion train them."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.models.layers import LARGEST_DIM, Images, check_dtype, check_images, check_levels, group_norm, pointwise_conv
from vqjax.quantizers.validation import check_flags, is_count, is_fraction, require, require_count


class _VQGAN(nn.Module):
    """Size and options that encoder and decoder share; see :class:`VQGANEncoder`."""

    patch_size: ClassVar[int] = 1

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    middle_attention: bool = True
    dropout: float | None = None
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_dtype(self.dtype)
        check_levels(self)
        heights = self.attention_resolutions
        are_heights = isinstance(heights, tuple | list) and all(map(is_count, heights))
        expected = "a tuple of positive integers"
        require(are_heights, "attention_resolutions", heights, expected, "pass () for no attention")
        require_count("resolution", self.resolution)
        in_range = self.dropout is None or is_fraction(self.dropout)
        require(in_range, "dropout", self.dropout, "a number in [0, 1), or None")

    def has_attention(self, level: int) -> bool:
        """Return whether the feature maps of a level have attention."""
        return self.resolution // self.patch_size >> level in self.attention_resolutions


class VQGANEncoder(_VQGAN):
    """Images to a grid of vectors, ``2 ** (len(multipliers) - 1)`` times smaller in each direction.

    A 3x3 convolution; at each level residual blocks, each followed by attention at the resolutions that have it, and
    a strided convolution; a residual block, attention and another residual block in the middle; group norm, swish and
    a 3x3 convolution to the latents, with a 1x1 convolution to the codes behind it.

    Attributes:
      channels: Channels of the first level; a multiple of 32, the number of groups of the norms.
      multipliers: Channels of each level, from fine to coarse, as multiples of ``channels``.
      num_res_blocks: Residual blocks of each level.
      attention_resolutions: Heights of feature maps at which levels have attention, where the image has
        ``resolution`` pixels.
      resolution: Height of the images for which the model is made. Images of other sizes keep attention at the same
        levels.
      middle_attention: Attention in the middle; False is ``attn_type: none`` of the published configs.
      latent_dim: Features of the latents (``z_channels``).
      code_dim: Features of the codes (``embed_dim``), by a 1x1 convolution; None: ``latent_dim``, without it.
      code_norm: Layer norm over the features of the codes, behind that convolution.
      dropout: Rate of dropout in the residual blocks, from the stream ``dropout``; None for none.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of all layers but norms and the last, such as ``"bfloat16"``; parameters and output are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = VQGANEncoder(channels=32, multipliers=(1, 2), latent_dim=4, attention_resolutions=())
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 16, 16, 3)))[0].shape
      (1, 8, 8, 4)

    Source: Esser et al., 2021 (arXiv 2012.09841); Rombach et al., 2022 (arXiv 2112.10752).
    """

    latent_dim: int = 256
    code_dim: int | None = None
    code_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("latent_dim", self.latent_dim, largest=LARGEST_DIM)
        if self.code_dim is not None:
            require_count("code_dim", self.code_dim, largest=LARGEST_DIM)

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Images:
        check_images(images)
        return encode_images(self, images, train)


class VQGANDecoder(_VQGAN):
    """A grid of codes to images, ``2 ** (len(multipliers) - 1)`` times larger in each direction.

    The mirror image of :class:`VQGANEncoder`, with one residual block more at each level, and a nearest-neighbor
    enlargement with a convolution in the place of the strided one. The output is not bounded.

    Attributes:
      num_res_blocks: One less than the residual blocks of each level, as in the published configs.
      latent_dim: Features that codes of a different dimension are brought to first, by a 1x1 convolution
        (``post_quant_conv``); None: codes are taken as they are.
      image_channels: Channels of the images. For all others see the encoder.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = VQGANDecoder(channels=32, multipliers=(1, 2), attention_resolutions=())
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 8, 8, 4)))[0].shape
      (1, 16, 16, 3)

    Source: Esser et al., 2021 (arXiv 2012.09841); Rombach et al., 2022 (arXiv 2112.10752).
    """

    latent_dim: int | None = None
    image_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim is not None:
            require_count("latent_dim", self.latent_dim, largest=LARGEST_DIM)
        require_count("image_channels", self.image_channels, largest=LARGEST_DIM)

    def setup(self) -> None:
        self.conv_out = conv(self.image_channels, jnp.float32)

    def __call__(self, codes: Images, train: bool = False) -> Images:
        return self.to_images(self.features(codes, train))

    @nn.compact
    def features(self, codes: Images, train: bool = False) -> Images:
        """Return the float32 input of the last layer, the convolution ``conv_out``.

        The adaptive weight of the adversarial loss is a ratio of gradients of that layer.
        """
        return decode_features(self, codes, train)

    def to_images(self, features: Images) -> Images:
        """Return images from the features in front of the last layer."""
        return self.conv_out(features)


@dataclasses.dataclass(frozen=True)
class BetweenFrames:
    """What a model of clips adds to the layers of images, which see the frames of all clips as one batch.

    Attributes:
      mix: Function ``(x, name)`` of the output of each residual block.
      scale: Function ``(x, level)`` behind the residual blocks of a level of the encoder, and in front of those of the
        decoder.
      norm: Function from a name to a norm.
    """

    mix: Callable[[Images, str], Images] = lambda x, name: x
    scale: Callable[[Images, int], Images] = lambda x, level: x
    norm: Callable[[str], nn.Module] = group_norm


_NOTHING = BetweenFrames()


def encode_images(
    module: VQGANEncoder, images: Images, train: bool, between: BetweenFrames = _NOTHING
) -> Float[Array, "grids _ _ _"]:
    """Apply the layers of an encoder, within its compact method.

    Args:
      module: The encoder.
      images: Images in [-1, 1].
      train: Whether dropout is on.
      between: What a model of clips adds.

    Returns:
      The latents.
    """
    block, attention = _blocks(module, train, between)
    x = conv(module.channels, module.dtype, name="conv_in")(images)
    last = len(module.multipliers) - 1
    for level in range(last + 1):
        x = between.scale(_level(module, x, level, module.num_res_blocks, block, attention), level)
        if level < last:
            x = _Downsample(module.dtype, name=f"level_{level}_downsample")(x)
    x = _middle(x, block, attention if module.middle_attention else None)
    # Latents rounded to bfloat16 would be nearest to other codes.
    x = conv(module.latent_dim, jnp.float32, name="conv_out")(nn.swish(between.norm("norm_out")(x)))
    x = x if module.code_dim is None else pointwise_conv(module.code_dim, name="to_codes")(x)
    return nn.LayerNorm(1e-5, use_fast_variance=False, name="norm_codes")(x) if module.code_norm else x


def decode_features(
    module: VQGANDecoder, codes: Images, train: bool, between: BetweenFrames = _NOTHING
) -> Float[Array, "frames _ _ _"]:
    """Apply the layers of a decoder but the last, within a compact method; see :func:`encode_images`."""
    block, attention = _blocks(module, train, between)
    x = codes if module.latent_dim is None else pointwise_conv(module.latent_dim, name="from_codes")(codes)
    x = conv(module.channels * module.multipliers[-1], module.dtype, name="conv_in")(x)
    x = _middle(x, block, attention if module.middle_attention else None)
    for level in reversed(range(len(module.multipliers))):
        x = _level(module, between.scale(x, level), level, module.num_res_blocks + 1, block, attention)
        if level > 0:
            x = _Upsample(module.dtype, name=f"level_{level}_upsample")(x)
    return nn.swish(between.norm("norm_out")(x))


class _ResidualBlock(nn.Module):
    """Twice a norm, swish and a 3x3 convolution, added to the input."""

    features: int
    dropout: float | None = None
    train: bool = False
    dtype: DTypeLike | None = None
    norm: Callable[[str], nn.Module] = group_norm

    @nn.compact
    def __call__(self, x: Images) -> Images:
        h = conv(self.features, self.dtype, name="conv_1")(nn.swish(self.norm("norm_1")(x)))
        h = nn.swish(self.norm("norm_2")(h))
        if self.dropout is not None:
            h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
        h = conv(self.features, self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.features:
            x = pointwise_conv(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class _Attention(nn.Module):
    """Attention of all positions with each other, by one head, added to the input."""

    dtype: DTypeLike | None = None
    norm: Callable[[str], nn.Module] = group_norm

    @nn.compact
    def __call__(self, x: Images) -> Images:
        batch, height, width, channels = x.shape
        normed = self.norm("norm")(x)

        def tokens(name: str) -> Float[Array, "batch positions 1 channels"]:
            projected = pointwise_conv(channels, dtype=self.dtype, name=name)(normed)
            return projected.reshape(batch, height * width, 1, channels)

        attended = jax.nn.dot_product_attention(tokens("query"), tokens("key"), tokens("value"))
        return x + pointwise_conv(channels, dtype=self.dtype, name="out")(attended.reshape(x.shape))


class _Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded at the bottom and on the right."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        return nn.Conv(x.shape[-1], (3, 3), 2, ((0, 1), (0, 1)), dtype=self.dtype, name="conv")(x)


class _Upsample(nn.Module):
    """Each pixel repeated twice in both directions, and a 3x3 convolution."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv(x.shape[-1], self.dtype, name="conv")(x)


def _blocks(module: _VQGAN, train: bool, between: BetweenFrames) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Residual blocks and attention with the options of a model, as functions of x, a name, and features."""
    block, attention = (nn.remat(kind) if module.remat else kind for kind in (_ResidualBlock, _Attention))

    def residual_block(x: Images, name: str, features: int) -> Images:
        y = block(features, module.dropout, train, module.dtype, between.norm, name=name)(x)  # pyright: ignore[reportCallIssue]
        return between.mix(y, name)

    def attention_block(x: Images, name: str) -> Images:
        return attention(module.dtype, between.norm, name=name)(x)

    return residual_block, attention_block


def _level(
    module: _VQGAN, x: Images, level: int, num_blocks: int, block: Callable[..., Any], attention: Callable[..., Any]
) -> Images:
    """Residual blocks of a level, each followed by attention if the level has it."""
    for i in range(num_blocks):
        x = block(x, f"level_{level}_block_{i}", module.channels * module.multipliers[level])
        if module.has_attention(level):
            x = attention(x, f"level_{level}_attention_{i}")
    return x


def _middle(x: Images, block: Callable[..., Any], attention: Callable[..., Any] | None) -> Images:
    features = x.shape[-1]
    x = block(x, "middle_block_0", features)
    if attention is not None:
        x = attention(x, "middle_attention")
    return block(x, "middle_block_1", features)


def conv(features: int, dtype: DTypeLike | None, name: str | None = None) -> nn.Conv:
    """Return a 3x3 convolution.

    Args:
      features: Number of output channels.
      dtype: Dtype of the computation.
      name: Name of the module; None for that of an attribute.
    """
    return nn.Conv(features, (3, 3), dtype=dtype, name=name)
