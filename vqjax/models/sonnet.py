"""The encoder and decoder of sonnet's and Haiku's CIFAR-10 VQ-VAE."""

import flax.linen as nn
from jax.typing import DTypeLike

from vqjax.models.convolutions import DownsamplingConv, Images, UpsamplingConv


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

    Two strided 4x4 convolutions, a 3x3 convolution, a residual stack, and a 1x1 convolution to the code dimension.

    Attributes:
      width: Channels of the latent grid; half of it after the first convolution.
      num_residual_blocks: Depth of the residual stack.
      code_dim: Features of the output.
      dtype: Of all layers but the last, such as ``"bfloat16"``; parameters and output are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = SonnetEncoder(width=8, code_dim=4)
      >>> encoder.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
      (1, 8, 8, 4)

    Source: google-deepmind/sonnet, examples/vqvae_example.ipynb.
    """

    width: int = 128
    num_residual_blocks: int = 2
    code_dim: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Images:
        x = nn.relu(DownsamplingConv(self.width // 2, dtype=self.dtype)(images))
        x = nn.relu(DownsamplingConv(self.width, dtype=self.dtype)(x))
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        x = ResidualStack(self.num_residual_blocks, bottleneck=self.width // 4, dtype=self.dtype)(x)
        return nn.Conv(self.code_dim, (1, 1))(x)


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
