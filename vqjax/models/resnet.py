"""A small residual network, whose features show how alike two images look."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vqjax.models.features import Features, check_color
from vqjax.models.layers import LARGEST_DIM, Images, check_dtype, space_to_depth
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import require_counts


class ResNet(nn.Module):
    """The features of a residual network behind its first convolution and behind each of its blocks.

    The first convolution has stride 2, and each block halves height and width by averages over 2x2 places; an odd last
    row or column is left out. Batch norms use their running averages, except in training.

    Variables:
      ``params``, and the running averages in ``batch_stats``.

    Attributes:
      channels: Channels of each level.
      dtype: Dtype of the computation, such as ``"bfloat16"``; parameters are float32.

    Raises:
      UserError: A number of channels is out of range; or the images are smaller than one pixel of the last level, or
        are not in color.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network, images = ResNet((8, 16, 32)), jnp.zeros((2, 32, 32, 3))
      >>> features, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
      >>> [x.shape[1:] for x in features]
      [(16, 16, 8), (8, 8, 16), (4, 4, 32)]

    Source: He et al., 2016 (arXiv 1512.03385); averages in the shortcut as in He et al., 2019 (arXiv 1812.01187).
    """

    channels: tuple[int, ...] = (32, 64, 128)
    dtype: DTypeLike | None = None

    @automatic_axes
    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Features:
        """Return the features of each level, from images in [-1, 1].

        Args:
          images: Images in color.
          train: Whether batch norms use the batch, and update their running averages.
        """
        require_counts("channels", self.channels, LARGEST_DIM, "pass one for each level")
        check_dtype(self.dtype)
        check_color(images, smallest=2 ** len(self.channels))

        def conv(x: Images, channels: int, size: int, name: str) -> Images:
            x = nn.Conv(channels, (size, size), use_bias=False, dtype=self.dtype, name=f"{name}_conv")(x)
            return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name=f"{name}_norm")(x)

        # 3x3 places of 2x2 pixels each: a convolution of 6x6 pixels.
        x = nn.relu(conv(space_to_depth(_even(images)), self.channels[0], 3, "stem"))
        features = [x]
        for level, channels in enumerate(self.channels[1:], start=1):
            x = _halved(x)
            y = nn.relu(conv(x, channels, 3, f"block_{level}_first"))
            x = nn.relu(conv(x, channels, 1, f"block_{level}_shortcut") + conv(y, channels, 3, f"block_{level}_second"))
            features.append(x)
        return tuple(features)


def _even(x: Images) -> Images:
    return x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]


def _halved(x: Images) -> Images:
    """Averages over 2x2 places. The gradient of a pooling layer dilates, which XLA runs slowly on CPUs."""
    batch, height, width, channels = x.shape
    return jnp.mean(_even(x).reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
