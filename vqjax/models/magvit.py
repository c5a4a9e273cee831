"""Encoder and decoder without attention, as MaskGIT and Open-MAGVIT2 train them."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vqjax.models.layers import (
    LARGEST_DIM,
    NORM_GROUPS,
    Images,
    check_dtype,
    check_images,
    check_levels,
    group_norm,
    pointwise_conv,
)
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import check_flags, require_choice, require_count

Variant = Literal["maskgit", "open_magvit2"]

_VARIANTS = ("maskgit", "open_magvit2")
_EPSILON = 1e-6


class _MAGVIT(nn.Module):
    """Size and options that encoder and decoder share; see :class:`MAGVITEncoder`."""

    variant: Variant = "maskgit"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_dtype(self.dtype)
        require_choice("variant", self.variant, _VARIANTS)
        check_levels(self)

    def _blocks(self, x: Images, features: int, name: str) -> Images:
        """As many residual blocks as a level has."""
        block = nn.remat(_ResidualBlock) if self.remat else _ResidualBlock
        for i in range(self.num_res_blocks):
            x = block(features, self.variant == "maskgit", self.dtype, name=f"{name}_{i}")(x)
        return x


class MAGVITEncoder(_MAGVIT):
    """Images to a grid of vectors, ``2 ** (len(multipliers) - 1)`` times smaller in each direction.

    A 3x3 convolution; at each level residual blocks, and the mean of 2 x 2 pixels (``maskgit``) or a strided
    convolution (``open_magvit2``); as many residual blocks again; group norm, swish and a 1x1 convolution to the
    latents.

    Attributes:
      variant: ``"maskgit"`` or ``"open_magvit2"``.
      channels: Channels of the first level; a multiple of 32, the number of groups of the norms.
      multipliers: Channels of each level, from fine to coarse, as multiples of ``channels``.
      num_res_blocks: Residual blocks of each level.
      latent_dim: Features of the latents.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of all layers but norms and the last, such as ``"bfloat16"``; parameters and output are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = MAGVITEncoder(channels=32, multipliers=(1, 2), latent_dim=4)
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 16, 16, 3)))[0].shape
      (1, 8, 8, 4)

    Source: Chang et al., 2022 (arXiv 2202.04200); Luo et al., 2024 (arXiv 2409.04410).
    """

    latent_dim: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("latent_dim", self.latent_dim, largest=LARGEST_DIM)

    @nn.compact
    def __call__(self, images: Images) -> Images:
        check_images(images)
        x = nn.Conv(self.channels, (3, 3), use_bias=False, dtype=self.dtype, name="conv_in")(images)
        for level, multiplier in enumerate(self.multipliers):
            x = self._blocks(x, self.channels * multiplier, f"level_{level}_block")
            if level == len(self.multipliers) - 1:
                break
            if self.variant == "maskgit":
                # Flax divides by an integer, which strict promotion of dtypes refuses.
                x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0
            else:
                name = f"level_{level}_downsample"
                x = nn.Conv(x.shape[-1], (3, 3), 2, ((1, 1), (1, 1)), dtype=self.dtype, name=name)(x)
        x = self._blocks(x, x.shape[-1], "middle_block")
        # Latents rounded to bfloat16 would have other codes.
        return pointwise_conv(self.latent_dim, name="conv_out")(nn.swish(group_norm(name="norm_out")(x)))


class MAGVITDecoder(_MAGVIT):
    """A grid of codes to images, ``2 ** (len(multipliers) - 1)`` times larger in each direction.

    The encoder in reverse. In the variant ``open_magvit2`` each level begins with a group norm whose scale and bias are
    linear in the deviation and the mean of the codes of the image, and ends in a convolution whose channels become
    pixels; in ``maskgit`` it ends in pixels repeated twice and a convolution. The output is not bounded.

    Attributes:
      image_channels: Channels of the images. For all others see the encoder.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = MAGVITDecoder("open_magvit2", channels=32, multipliers=(1, 2))
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 8, 8, 4)))[0].shape
      (1, 16, 16, 3)

    Source: Chang et al., 2022 (arXiv 2202.04200); Luo et al., 2024 (arXiv 2409.04410).
    """

    image_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("image_channels", self.image_channels, largest=LARGEST_DIM)

    def setup(self) -> None:
        self.conv_out = nn.Conv(self.image_channels, (3, 3))

    def __call__(self, codes: Images) -> Images:
        return self.to_images(self.features(codes))

    @automatic_axes
    @nn.compact
    def features(self, codes: Images) -> Images:
        """Return the float32 input of the last layer, ``conv_out``; see :meth:`VQGANDecoder.features`."""
        x = nn.Conv(self.channels * self.multipliers[-1], (3, 3), dtype=self.dtype, name="conv_in")(codes)
        x = self._blocks(x, x.shape[-1], "middle_block")
        for level in reversed(range(len(self.multipliers))):
            if self.variant == "open_magvit2":
                x = _StyleNorm(name=f"level_{level}_norm")(x, codes)
            x = self._blocks(x, self.channels * self.multipliers[level], f"level_{level}_block")
            if level > 0:
                x = self._upsample(x, f"level_{level}_upsample")
        return nn.swish(group_norm(name="norm_out")(x))

    def _upsample(self, x: Images, name: str) -> Images:
        batch, height, width, features = x.shape
        if self.variant == "maskgit":
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            return nn.Conv(features, (3, 3), dtype=self.dtype, name=name)(x)
        x = nn.Conv(4 * features, (3, 3), dtype=self.dtype, name=name)(x)
        x = x.reshape(batch, height, width, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * height, 2 * width, features)

    def to_images(self, features: Images) -> Images:
        """Return images from the features in front of the last layer."""
        return self.conv_out(features)


class _ResidualBlock(nn.Module):
    """Twice group norm, swish and a 3x3 convolution, added to the input; convolutions have no biases."""

    features: int
    shortcut_of_output: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        h = x
        for i in (1, 2):
            h = nn.swish(group_norm(name=f"norm_{i}")(h))
            h = nn.Conv(self.features, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv_{i}")(h)
        if x.shape[-1] != self.features:
            # MaskGIT's shortcut is one of the block's output, and its published weights need it.
            shortcut = pointwise_conv(self.features, use_bias=False, dtype=self.dtype, name="shortcut")
            x = shortcut(h if self.shortcut_of_output else x)
        return x + h


class _StyleNorm(nn.Module):
    """Group norm with a scale and a bias that are linear in the deviation and the mean of the codes of an image."""

    @nn.compact
    def __call__(self, x: Images, codes: Images) -> Images:
        normed = nn.GroupNorm(NORM_GROUPS, use_scale=False, use_bias=False, use_fast_variance=False, dtype=jnp.float32)(
            x
        )
        deviation = jnp.sqrt(codes.var(axis=(1, 2), keepdims=True, ddof=1) + _EPSILON)
        scale, bias = (nn.Dense(x.shape[-1], name=name) for name in ("scale", "bias"))
        return scale(deviation) * normed + bias(codes.mean(axis=(1, 2), keepdims=True))
