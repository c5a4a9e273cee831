"""Scaling of 8-bit images to the size and range of a feature network, as the published tools do it.

The features depend on it, and with them every distance: the tools disagree about where a pixel lies, about the kernel,
and about whether what is shrunk is blurred first.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.data.images import Size
from vqjax.errors import UserError

Pixels = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch _ _ channels"]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a tool brings images to the size and range of its network.

    Attributes:
      resize: Function of floats in [0, 255] and a size to images of that height and width.
      normalize: Function from [0, 255] to the range of the network.
      how: Description for a protocol.

    Example:
      >>> images = jnp.full((2, 32, 48, 3), 255, jnp.uint8)
      >>> scaled = SCALINGS["clean-fid"](images, 299)
      >>> scaled.shape, float(scaled.max())
      ((2, 299, 299, 3), 0.9921875)
    """

    resize: Callable[[Pixels, Size], Resized]
    normalize: Callable[[Resized], Resized]
    how: str

    def __call__(self, images: Array, size: Size) -> Resized:
        """Scale images of any height and width; pure, and may be compiled with a static ``size``.

        Args:
          images: uint8 ``[batch, height, width, channels]``.
          size: Height and width of the result in pixels, or one number for both.

        Returns:
          Images in [-1, 1].

        Raises:
          UserError: The images are not of 8 bits, on which the tools are defined.
        """
        if images.dtype != jnp.uint8:
            raise UserError(f"`images` must be uint8, got {images.dtype}; round pixels to 8 bits, as files have them.")
        return self.normalize(self.resize(images.astype(jnp.float32), size))


def bilinear(images: Pixels, size: Size) -> Resized:
    """Resize by bilinear interpolation without antialiasing, as PyTorch's ``interpolate``.

    Args:
      images: Floats.
      size: Height and width of the result, or one number for both.

    Example:
      >>> bilinear(jnp.array([[0.0, 4.0], [0.0, 4.0]]).reshape(1, 2, 2, 1), 4)[0, 0, :, 0].tolist()
      [0.0, 1.0, 3.0, 4.0]
    """
    return jax.image.resize(images, _shape(images, size), "bilinear", antialias=False)


def bilinear_from_corners(images: Pixels, size: Size) -> Resized:
    """Resize by bilinear interpolation between the upper left corners of pixels, as TensorFlow 1 did.

    Pixel ``i`` of the result is at ``i * n / size``, up to half a pixel from where it belongs.

    Args:
      images: Floats.
      size: Height and width of the result, or one number for both.

    Example:
      >>> bilinear_from_corners(jnp.array([[0.0, 4.0], [0.0, 4.0]]).reshape(1, 2, 2, 1), 4)[0, 0, :, 0].tolist()
      [0.0, 2.0, 4.0, 4.0]

    Source: TensorFlow, ``core/kernels/image_resizer_state.h``.
    """
    height, width = _sides(size)
    for axis, side in ((2, width), (1, height)):
        length = images.shape[axis]
        places = np.arange(side, dtype=np.float32) * np.float32(length / side)
        below = places.astype(np.int32)
        above = np.minimum(below + 1, length - 1)
        shape = [1] * images.ndim
        shape[axis] = side
        fraction = (places - below).reshape(shape)
        low, high = jnp.take(images, below, axis), jnp.take(images, above, axis)
        images = low + (high - low) * fraction
    return images


def bicubic(images: Pixels, size: Size) -> Resized:
    """Resize by antialiased bicubic interpolation, as Pillow does images of floats, and clip to [0, 255].

    Args:
      images: Floats in [0, 255].
      size: Height and width of the result, or one number for both.

    Example:
      >>> stripes = jnp.tile(jnp.array([0.0, 255.0]), (1, 32, 16))[..., None]
      >>> bicubic(stripes, 8)[0, 4, 2:6, 0].round().tolist()
      [128.0, 128.0, 128.0, 128.0]
    """
    return jnp.clip(jax.image.resize(images, _shape(images, size), "bicubic"), 0, 255)


def bicubic_of_8_bits(images: Pixels, size: Size) -> Resized:
    """Resize as Pillow does images of 8 bits: antialiased, and rounded behind the width and behind the height.

    The width is first, as before Pillow 13, which begins with the height where that shrinks more.

    Args:
      images: Floats in [0, 255].
      size: Height and width of the result, or one number for both.

    Example:
      >>> bicubic_of_8_bits(jnp.array([[0.0, 5.0], [0.0, 5.0]]).reshape(1, 2, 2, 1), 4)[0, 0, :, 0].tolist()
      [0.0, 1.0, 4.0, 5.0]
    """
    batch, rows, _, channels = images.shape
    height, width = _sides(size)
    for shape in ((batch, rows, width, channels), (batch, height, width, channels)):
        resized = jax.image.resize(images, shape, "bicubic")
        images = jnp.floor(jnp.clip(resized, 0, 255) + 0.5)
    return images


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _shape(images: Pixels, size: Size) -> tuple[int, int, int, int]:
    return (images.shape[0], *_sides(size), images.shape[3])


def _symmetric(images: Pixels) -> Pixels:
    return images / 127.5 - 1


def _by_128(images: Pixels) -> Pixels:
    # White becomes 127/128.
    return (images - 128) / 128


SCALINGS = {
    "pytorch-fid": Scaling(bilinear, _symmetric, "bilinear without antialiasing, as pytorch-fid"),
    "clean-fid": Scaling(bicubic, _by_128, "antialiased bicubic, not rounded, as clean-fid"),
    "tf1": Scaling(
        bilinear_from_corners, _by_128, "bilinear from corners, as TensorFlow 1, guided diffusion and torch-fidelity"
    ),
    "dgm-eval": Scaling(bicubic_of_8_bits, _symmetric, "antialiased bicubic in 8 bits, as dgm-eval"),
    "torch-fidelity-dinov2": Scaling(
        bilinear_from_corners, _symmetric, "bilinear from corners, as torch-fidelity for DINOv2"
    ),
}
"""The scalings by the name of the tool."""
