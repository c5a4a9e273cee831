"""Convolutional encoders and decoders: the CIFAR-10 model of the rotation-trick paper, and Sonnet's VQ-VAE example."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vqjax.models.layers import DownsamplingConv, Images, UpsamplingConv, check_images


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, and a ReLU after the sum with the input."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels = x.shape[-1]
        h = nn.Conv(channels, (3, 3), dtype=self.dtype)(nn.relu(nn.Conv(channels, (3, 3), dtype=self.dtype)(x)))
        return nn.relu(x + h)


class ResidualEncoder(nn.Module):
    """Encoder from images to a grid of vectors, ``2 ** num_scalings`` times smaller in each direction.

    Strided 4x4 convolutions, each of which doubles the number of channels (up to ``width``) and is followed by a ReLU,
    then residual blocks. Without ``latent_dim`` the output follows a ReLU, so all its vectors lie within 90 degrees of
    each other.

    Attributes:
      width: Number of channels of the latent grid.
      num_scalings: Number of strided convolutions.
      num_residual_blocks: Number of residual blocks after the strided convolutions.
      latent_dim: Number of output features, produced by a final 1x1 convolution; ``None`` omits that convolution, as in
        the published model.
      dtype: Dtype of the computation, such as ``"bfloat16"``, in every layer but the convolution of ``latent_dim``;
        parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = ResidualEncoder(width=8)
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
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
        check_images(images)
        x = images
        for level in reversed(range(self.num_scalings)):
            x = nn.relu(DownsamplingConv(max(1, self.width >> level), dtype=self.dtype)(x))
        for _ in range(self.num_residual_blocks):
            x = ResidualBlock(self.dtype)(x)
        # The 1x1 convolution runs in float32: rounding latents to bfloat16 could change which code is nearest.
        return x.astype(jnp.float32) if self.latent_dim is None else nn.Conv(self.latent_dim, (1, 1))(x)


class ResidualDecoder(nn.Module):
    """Decoder from a grid of codes to images in [-1, 1], ``2 ** num_scalings`` times larger in each direction.

    Residual blocks, then transposed 4x4 convolutions that halve the channels, and a hyperbolic tangent.

    Attributes:
      width: Number of channels of the residual blocks; codes of a different dimension first pass through a 1x1
        convolution.
      num_scalings: Number of transposed convolutions.
      num_residual_blocks: Number of residual blocks before the transposed convolutions.
      image_channels: Number of channels of the images.
      dtype: Dtype of the computation in every layer but the last, such as ``"bfloat16"``; parameters and output are
        float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = ResidualDecoder(width=8)
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 8, 8, 8)))[0].shape
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
      bottleneck: Number of channels between the two convolutions of a block.
      dtype: Dtype of the computation.
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
    """Encoder from images to a grid of vectors, four times smaller in each direction.

    Two strided 4x4 convolutions, a 3x3 convolution, a residual stack, and a 1x1 convolution to ``latent_dim``.

    Attributes:
      width: Number of channels of the latent grid; the first convolution has ``width // 2``.
      num_residual_blocks: Depth of the residual stack.
      latent_dim: Number of output features.
      dtype: Dtype of the computation in every layer but the last, such as ``"bfloat16"``; parameters and output are
        float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = SonnetEncoder(width=8, latent_dim=4)
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
      (1, 8, 8, 4)

    Source: google-deepmind/sonnet, examples/vqvae_example.ipynb.
    """

    width: int = 128
    num_residual_blocks: int = 2
    latent_dim: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Images:
        check_images(images)
        x = nn.relu(DownsamplingConv(self.width // 2, dtype=self.dtype)(images))
        x = nn.relu(DownsamplingConv(self.width, dtype=self.dtype)(x))
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        x = ResidualStack(self.num_residual_blocks, bottleneck=self.width // 4, dtype=self.dtype)(x)
        return nn.Conv(self.latent_dim, (1, 1))(x)


class SonnetDecoder(nn.Module):
    """Decoder from a grid of codes to images, four times larger in each direction; the output is not bounded.

    A 3x3 convolution, a residual stack, and two transposed 4x4 convolutions of stride 2.

    Attributes:
      width: Number of channels of the residual stack; the last hidden layer has ``width // 2``.
      num_residual_blocks: Depth of the residual stack.
      image_channels: Number of channels of the images.
      dtype: Dtype of the computation in every layer but the last, such as ``"bfloat16"``; parameters and output are
        float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = SonnetDecoder(width=8)
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 8, 8, 4)))[0].shape
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
