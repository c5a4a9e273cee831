"""The convolutions of VGG-16 and AlexNet, whose features show how alike two images look."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.models.layers import Images, check_images

Features = tuple[Float[Array, "batch _ _ _"], ...]

# Mean and deviation of ImageNet's pixels, in [-1, 1].
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)


class VGG16(nn.Module):
    """The features of VGG-16 behind the last ReLU of each of its five resolutions.

    Layers have the numbers of torchvision's ``vgg16().features``: ``conv_0``, ``conv_2``, ``conv_5`` and so on.

    Attributes:
      dtype: Dtype of the convolutions, such as ``"bfloat16"``; parameters are float32.

    Raises:
      UserError: The images are smaller than 16 pixels, or are not in color.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.zeros((1, 16, 16, 3))
      >>> features, _ = jax.eval_shape(VGG16().init_with_output, jax.random.key(0), images)
      >>> [x.shape[1:] for x in features]
      [(16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512), (1, 1, 512)]

    Source: Simonyan and Zisserman, 2015 (arXiv 1409.1556).
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Features:
        x, number, features = imagenet_normalized(images, smallest=16), 0, []
        for resolution, (num_convs, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
            if resolution > 0:
                x, number = nn.max_pool(x, (2, 2), strides=(2, 2)), number + 1
            for _ in range(num_convs):
                x = nn.relu(nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{number}")(x))
                number += 2  # the ReLU has a number, too
            features.append(x)
        return tuple(features)


class AlexNet(nn.Module):
    """The features of AlexNet behind each of its five ReLUs.

    Layers have the numbers of torchvision's ``alexnet().features``: ``conv_0``, ``conv_3``, ``conv_6`` and so on.

    Attributes:
      dtype: Dtype of the convolutions, such as ``"bfloat16"``; parameters are float32.

    Raises:
      UserError: The images are smaller than 31 pixels, or are not in color.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> features, _ = jax.eval_shape(AlexNet().init_with_output, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> [x.shape[1:] for x in features]
      [(7, 7, 64), (3, 3, 192), (1, 1, 384), (1, 1, 256), (1, 1, 256)]

    Source: Krizhevsky, 2014 (arXiv 1404.5997).
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Features:
        def conv(number: int, channels: int, size: int, padding: int, strides: int = 1) -> nn.Conv:
            kernel = (size, size)
            return nn.Conv(channels, kernel, strides, padding, dtype=self.dtype, name=f"conv_{number}")

        x = nn.relu(conv(0, 64, 11, 2, strides=4)(imagenet_normalized(images, smallest=31)))
        features = [x]
        for number, channels, size in ((3, 192, 5), (6, 384, 3), (8, 256, 3), (10, 256, 3)):
            if number in (3, 6):
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
            x = nn.relu(conv(number, channels, size, size // 2)(x))
            features.append(x)
        return tuple(features)


def check_color(images: Images, smallest: int) -> None:
    """Refuse what is not a batch of color images that are large enough.

    Args:
      images: The argument of a network.
      smallest: Least height and width in pixels.

    Raises:
      UserError: The images are not floats, not in color, or too small.
    """
    check_images(images)
    if images.shape[-1] != 3 or min(images.shape[1:3]) < smallest:
        raise UserError(
            f"images must have 3 channels and be at least {smallest} pixels high and wide, got shape {images.shape}; "
            "repeat gray images along the last axis, and enlarge small ones."
        )


def imagenet_normalized(images: Images, smallest: int) -> Images:
    """Return images as networks that were trained on ImageNet take them: less its mean, over its deviation.

    Args:
      images: In [-1, 1], in color.
      smallest: Least height and width in pixels.

    Raises:
      UserError: As :func:`check_color`.
    """
    check_color(images, smallest)
    mean, deviation = (jnp.asarray(x, images.dtype)[None, None, None] for x in (_MEAN, _DEVIATION))
    return (images - mean) / deviation
