"""Convolutional encoders and decoders: the CIFAR-10 model of the rotation trick, and sonnet's VQ-VAE."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vqjax.models.layers import DownsamplingConv, Images, UpsamplingConv


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, and a ReLU after the sum with the input."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels = x.shape[-1]
        h = nn.Conv(channels, (3, 3), dtype=self.dtype)(nn.relu(nn.Conv(channels, (3, 3), dtype=self.dtype)(x)))
        return nn.relu(x + h)


class ResidualEncoder(nn.Module):
    """Images to a grid of vectors, ``2 ** num_scalings`` times smaller in each direction.

    Strided 4x4 convolutions, each followed by a ReLU and doubling the channels up to ``width``, then residual
    blocks. Without ``latent_dim`` the output follows a ReLU, so all its vectors lie within 90 degrees of each other.

    Attributes:
      width: Channels of the latent grid.
      num_scalings: Number of strided convolutions.
      num_residual_blocks: Number of residual blocks.
      latent_dim: Features of the output, by a 1x1 convolution; ``None`` omits it, as the published model does.
      dtype: Of all layers but the last, such as ``"bfloat16"``; parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = ResidualEncoder(width=8)
      >>> encoder.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
      (1, 8, 8, 8)

    Source: the model code published with the rotation trick (see docs/results.md).
    """

    width: int = 256
    num_scalings: int = 2
    num_residual_blocks: int = 2
    latent_dim: int | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Images:
        x = images
        for level in reversed(range(self.num_scalings)):
            x = nn.relu(DownsamplingConv(max(1, self.width >> level), dtype=self.dtype)(x))
        for _ in range(self.num_residual_blocks):
            x = ResidualBlock(self.dtype)(x)
        # Latents rounded to bfloat16 would be nearest to other codes.
        return x.astype(jnp.float32) if self.latent_dim is None else nn.Conv(self.latent_dim, (1, 1))(x)


class ResidualDecoder(nn.Module):
    """A grid of codes to images in [-1, 1], ``2 ** num_scalings`` times larger in each direction.

    Residual blocks, then transposed 4x4 convolutions that halve the channels, and a hyperbolic tangent.

    Attributes:
      width: Channels of the residual blocks; codes of another dimension pass a 1x1 convolution first.
      num_scalings: Number of transposed convolutions.
      num_residual_blocks: Number of residual blocks.
      image_channels: Channels of the images.
      dtype: Of all layers but the last, such as ``"bfloat16"``; parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = ResidualDecoder(width=8)
      >>> decoder.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 8)))[0].shape
      (1, 32, 32, 3)

    Source: the model code published with the rotation trick (see docs/results.md).
    """

    width: int = 256
    num_scalings: int = 2
    num_residual_blocks: int = 2
    image_channels: int = 3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, codes: Images) -> Images:
        x = codes if codes.shape[-1] == self.width else nn.Conv(self.width, (1, 1), dtype=self.dtype)(codes)
        for _ in range(self.num_residual_blocks):
            x = ResidualBlock(self.dtype)(x)
        for level in range(1, self.num_scalings):
            x = nn.relu(UpsamplingConv(max(1, self.width >> level), dtype=self.dtype)(x))
        return nn.tanh(UpsamplingConv(self.image_channels)(x))


class ResidualStack(nn.Module):
    """Pre-activation residual blocks (ReLU, 3x3, ReLU, 1x1), and a ReLU at the end.

    Attributes:
      num_blocks: Number of residual blocks.
      bottleneck: Channels between the two convolutions of a block.
      dtype: Of the computation.
    """

    num_blocks: int
    bottleneck: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels = x.shape[-1]
        for _ in range(self.num_blocks):
            h = nn.Conv(self.bottleneck, (3, 3), dtype=self.dtype)(nn.relu(x))
            x = x + nn.Conv(channels, (1, 1), dtype=self.dtype)(nn.relu(h))
        return nn.relu(x)


class SonnetEncoder(nn.Module):
    """Images to a grid of vectors, four times smaller in each direction.

    Two strided 4x4 convolutions, a 3x3 convolution, a residual stack, and a 1x1 convolution to ``latent_dim``.

    Attributes:
      width: Channels of the latent grid; half of it after the first convolution.
      num_residual_blocks: Depth of the residual stack.
      latent_dim: Features of the output.
      dtype: Of all layers but the last, such as ``"bfloat16"``; parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = SonnetEncoder(width=8, latent_dim=4)
      >>> encoder.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
      (1, 8, 8, 4)

    Source: google-deepmind/sonnet, examples/vqvae_example.ipynb.
    """

    width: int = 128
    num_residual_blocks: int = 2
    latent_dim: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Images:
        x = nn.relu(DownsamplingConv(self.width // 2, dtype=self.dtype)(images))
        x = nn.relu(DownsamplingConv(self.width, dtype=self.dtype)(x))
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        x = ResidualStack(self.num_residual_blocks, bottleneck=self.width // 4, dtype=self.dtype)(x)
        return nn.Conv(self.latent_dim, (1, 1))(x)


class SonnetDecoder(nn.Module):
    """A grid of codes to images, four times larger in each direction; the output is not bounded.

    A 3x3 convolution, a residual stack, and two transposed 4x4 convolutions of stride 2.

    Attributes:
      width: Channels of the latent grid; half of it before the last layer.
      num_residual_blocks: Depth of the residual stack.
      image_channels: Channels of the images.
      dtype: Of all layers but the last, such as ``"bfloat16"``; parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = SonnetDecoder(width=8)
      >>> decoder.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 4)))[0].shape
      (1, 32, 32, 3)

    Source: google-deepmind/sonnet, examples/vqvae_example.ipynb.
    """

    width: int = 128
    num_residual_blocks: int = 2
    image_channels: int = 3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, codes: Images) -> Images:
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(codes)
        x = ResidualStack(self.num_residual_blocks, bottleneck=self.width // 4, dtype=self.dtype)(x)
        x = nn.relu(UpsamplingConv(self.width // 2, dtype=self.dtype)(x))
        return UpsamplingConv(self.image_channels)(x)
