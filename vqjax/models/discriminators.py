"""Discriminators of adversarial training: PatchGAN, for images and for clips, and that of StyleGAN2."""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.functional.sharding import with_automatic_axes
from vqjax.models.layers import LARGEST_DIM, Clips, Images, check_clips, check_dtype, check_images, clips_conv
from vqjax.quantizers.validation import require_count, require_counts

Logits = Float[Array, "batch *positions"]
Maps = Float[Array, "batch *places _"]

_SLOPE = 0.2


class _PatchGAN(nn.Module):
    """Size and options that both PatchGANs share, and their layers; see :class:`PatchGAN`."""

    channels: int = 64
    num_layers: int = 3
    statistics_groups: int = 1
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("channels", self.channels, largest=LARGEST_DIM)
        require_count("num_layers", self.num_layers, largest=20)
        require_count("statistics_groups", self.statistics_groups)
        check_dtype(self.dtype)

    def _judge(self, x: Maps, train: bool, padding: int, widest: int) -> Logits:
        """Logits of patches, by convolutions over all axes between batch and channels."""
        layer, size = (clips_conv, (4, 4, 4)) if x.ndim == 5 else (nn.Conv, (4, 4))
        conv = functools.partial(layer, kernel_size=size, padding=padding, kernel_init=nn.initializers.normal(0.02))
        x = conv(self.channels, strides=2, dtype=self.dtype, name="conv_0")(x)
        x = nn.leaky_relu(x, _SLOPE)
        for layer in range(1, self.num_layers + 1):
            stride = 2 if layer < self.num_layers else 1
            features = min(self.channels * 2**layer, widest)
            x = conv(features, strides=stride, use_bias=False, dtype=self.dtype, name=f"conv_{layer}")(x)
            x = _BatchNorm(self.statistics_groups, name=f"norm_{layer}")(x, train)
            x = nn.leaky_relu(x, _SLOPE)
        return conv(1, dtype=jnp.float32, name=f"conv_{self.num_layers + 1}")(x)[..., 0]


class PatchGAN(_PatchGAN):
    """Convolutions that judge overlapping patches of an image.

    Strided 4x4 convolutions, each behind the first with batch normalization and a leaky ReLU. Real and generated images
    pass in calls of their own, so that each is normalized by its own statistics.

    Under ``jit``, the statistics of a batch that is divided over devices are those of the whole batch. The published
    models normalize per device, with 3 to 14 images each: ``statistics_groups`` divides a batch as they do.

    Attributes:
      channels: Channels of the first convolution.
      num_layers: Strided convolutions; the receptive field is 34 pixels with 2, 70 with 3.
      statistics_groups: Number of equal parts of a batch, each of which is normalized by itself; the running statistics
        follow their mean.
      dtype: Dtype of all convolutions but the last, such as ``"bfloat16"``; parameters, statistics and logits are
        float32.

    Raises:
      UserError: A size is out of range, the image is too small for the layers, or a batch does not divide.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> discriminator = PatchGAN(channels=8)
      >>> create = lambda key, images: discriminator.init_with_output(key, images, train=False)
      >>> logits, variables = jax.eval_shape(create, jax.random.key(0), jnp.ones((2, 64, 64, 3)))
      >>> logits.shape, sorted(variables)
      ((2, 6, 6), ['batch_stats', 'params'])

    Source: Isola et al., 2017 (arXiv 1611.07004); widths and initial values as in taming-transformers.
    """

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Logits:
        check_images(images)
        _, height, width, _ = images.shape
        # Each strided convolution halves the image, rounded down, and the last two take one pixel each.
        smallest = 3 * 2**self.num_layers
        if min(height, width) < smallest:
            raise UserError(
                f"images must be at least {smallest} pixels high and wide for num_layers={self.num_layers}, got "
                f"{height} x {width}; lower num_layers, or take larger images."
            )
        return self._judge(images, train, padding=1, widest=8 * self.channels)


class PatchGAN3D(_PatchGAN):
    """Convolutions that judge overlapping patches of a clip, over several of its frames.

    The layers are those of :class:`PatchGAN`, of 4x4x4 in time and space, with two places of padding, so that clips of
    any size have logits. Statistics are those of all frames of a batch.

    Attributes:
      channels: Channels of the first convolution; later ones have up to 512.
      num_layers: Strided convolutions, which halve time and space alike; the receptive field is 34 frames and pixels
        with 2, 70 with 3.

    For the other attributes see :class:`PatchGAN`.

    Raises:
      UserError: A size is out of range, or a batch does not divide.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> discriminator = PatchGAN3D(channels=8)
      >>> create = lambda key, clips: discriminator.init_with_output(key, clips, train=False)
      >>> logits, variables = jax.eval_shape(create, jax.random.key(0), jnp.ones((2, 16, 64, 64, 3)))
      >>> logits.shape, sorted(variables)
      ((2, 5, 11, 11), ['batch_stats', 'params'])

    Source: Ge et al., 2022 (arXiv 2204.03638), ``NLayerDiscriminator3D``, without the biases that the norms take away;
    initial values as in taming-transformers.
    """

    takes_clips: ClassVar[bool] = True

    @nn.compact
    def __call__(self, clips: Clips, train: bool) -> Logits:
        check_clips(clips)
        return self._judge(clips, train, padding=2, widest=512)


class _BatchNorm(nn.Module):
    """Batch normalization of parts of a batch, with the running variance of PyTorch, which is unbiased."""

    groups: int = 1

    @nn.compact
    def __call__(self, x: Maps, train: bool) -> Maps:
        features, axes = x.shape[-1], tuple(range(x.ndim - 1))
        scale = self.param(
            "scale", lambda key, shape: 1 + 0.02 * jax.random.normal(key, shape, jnp.float32), (features,)
        )
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        if not train:
            centered = x.astype(jnp.float32) - jnp.expand_dims(mean.value, axes)
            scale = scale * jax.lax.rsqrt(variance.value + 1e-5)
            return (centered * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)).astype(x.dtype)
        if len(x) % self.groups:
            raise UserError(
                f"statistics_groups must divide the batch of {len(x)}, got {self.groups}; pass a divisor of it."
            )
        parts = x.astype(jnp.float32).reshape(self.groups, -1, *x.shape[1:])
        within = tuple(range(1, x.ndim))
        of_parts = jnp.mean(parts, within, keepdims=True)
        centered = parts - of_parts
        variances = jnp.mean(jnp.square(centered), within, keepdims=True)
        if not self.is_initializing():
            count = math.prod(parts.shape[1:-1])
            unbiased = jnp.mean(variances, (0, *within)) * (count / max(1, count - 1))
            mean.value = 0.9 * mean.value + 0.1 * jnp.mean(of_parts, (0, *within))
            variance.value = 0.9 * variance.value + 0.1 * unbiased
        normed = (centered * jax.lax.rsqrt(variances + 1e-5)).reshape(x.shape)
        return (normed * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)).astype(x.dtype)


class StyleGANDiscriminator(nn.Module):
    """The residual discriminator of StyleGAN2, with one logit per image.

    Weights are drawn from the unit normal distribution and scaled at use, so that an optimizer moves all layers at the
    same relative rate. A feature of the standard deviation over groups of images reveals a lack of variety.

    Attributes:
      channels: Channels from the image's resolution down to a resolution of 4, which the last layers see.
      group_size: Largest number of images in a group of the standard deviation; members are as far apart in the batch
        as there are groups.
      dtype: Dtype of the convolutions, such as ``"bfloat16"``; parameters and logits are float32.

    Raises:
      UserError: A size is out of range, or the number of levels does not fit the image.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> discriminator = StyleGANDiscriminator(channels=(8, 8, 16))
      >>> images = jnp.ones((4, 16, 16, 3))
      >>> jax.eval_shape(discriminator.init_with_output, jax.random.key(0), images)[0].shape
      (4,)

    Source: Karras et al., 2020 (arXiv 1912.04958); sizes as in enhancing-transformers.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512, 512, 512, 512)
    group_size: int = 4
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("channels", self.channels, LARGEST_DIM, "pass one for each resolution down to 4")
        require_count("group_size", self.group_size)
        check_dtype(self.dtype)

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        check_images(images)
        del train
        smallest = 2 ** (len(self.channels) - 1)
        _, height, width, _ = images.shape
        if (height, width) != (4 * smallest, 4 * smallest):
            raise UserError(
                f"images must be {4 * smallest} pixels high and wide for {len(self.channels)} entries in channels, got "
                f"{height} x {width}; pass one entry for each halving down to 4 pixels, and one more."
            )
        x = _activated(_EqualizedConv(self.channels[0], 1, dtype=self.dtype, name="conv_in")(images))
        for i, features in enumerate(self.channels[1:]):
            x = _StyleBlock(features, self.dtype, name=f"block_{i}")(x)
        x = jnp.concatenate([x, _deviation(x, self.group_size)], axis=-1)
        x = _activated(_EqualizedConv(self.channels[-1], 3, dtype=self.dtype, name="conv_out")(x))
        x = x.reshape(len(x), -1)
        x = _activated(_EqualizedDense(self.channels[-1], name="dense")(x))
        return _EqualizedDense(1, name="logit")(x)[:, 0]


class _StyleBlock(nn.Module):
    """Two convolutions, the second of which halves the image, added to a skip that halves it."""

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        h = _activated(_EqualizedConv(x.shape[-1], 3, dtype=self.dtype, name="conv_1")(x))
        h = _EqualizedConv(self.features, 3, stride=2, dtype=self.dtype, name="conv_2")(_blur(h, 2))
        skip = _EqualizedConv(self.features, 1, stride=2, use_bias=False, dtype=self.dtype, name="skip")(_blur(x, 1))
        return (_activated(h) + skip) / math.sqrt(2)


class _EqualizedConv(nn.Module):
    """A convolution whose weights are scaled by their fan-in at use; without padding if it strides."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32) / math.sqrt(math.prod(shape[:3]))
        dtype = x.dtype if self.dtype is None else self.dtype
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (self.stride, self.stride),
            "SAME" if self.stride == 1 else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(dtype)[None, None, None]


class _EqualizedDense(nn.Module):
    """A linear layer whose weights are scaled by their fan-in at use."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return jnp.matmul(x.astype(jnp.float32), kernel / math.sqrt(x.shape[-1])) + bias[None]


def _activated(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A leaky ReLU that keeps the mean square of unit normal inputs about as it is."""
    return nn.leaky_relu(x, _SLOPE) * math.sqrt(2)


def _blur(x: Images, padding: int) -> Images:
    """Smooth by the binomial filter 1, 3, 3, 1 in both directions, between zeros."""
    # Sums of shifted images fuse into a loop; as a convolution by channels they take six times as long on CPUs.
    smooth = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in (1, 2):
        smooth = jnp.pad(smooth, [(padding, padding) if of == axis else (0, 0) for of in range(4)])
        size = smooth.shape[axis] - 3
        first, second, third, fourth = (jax.lax.slice_in_dim(smooth, i, i + size, axis=axis) for i in range(4))
        smooth = (first + fourth) / 8 + (second + third) * (3 / 8)
    return smooth.astype(x.dtype)


@with_automatic_axes(like="x")
def _deviation(x: Images, group_size: int) -> Images:
    """Mean standard deviation over the images of a group, as one more channel of each of its images."""
    batch, height, width, channels = x.shape
    # A batch that does not divide has larger groups.
    groups = next(number for number in range(max(1, batch // group_size), 0, -1) if batch % number == 0)
    size = batch // groups
    grouped = x.astype(jnp.float32).reshape(size, groups, height, width, channels)
    variance = jnp.mean(jnp.square(grouped - jnp.mean(grouped, axis=0, keepdims=True)), axis=0)
    of_group = jnp.mean(jnp.sqrt(variance + 1e-8), axis=(1, 2, 3))
    # Image i is in group i modulo the number of groups.
    per_image = jnp.tile(of_group, size)[:, None, None, None]
    return jnp.broadcast_to(per_image, (batch, height, width, 1)).astype(x.dtype)
