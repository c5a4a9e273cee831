"""Scaling of 8-bit images to the size and range of a feature network, as the published tools do it.

The features depend on it, and with them every distance: the tools disagree about where a pixel lies, about the kernel,
and about whether what is shrunk is blurred first.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from vqjax.data.images import Size
from vqjax.errors import UserError

Kernel = Callable[[Float[np.ndarray, "length size"]], Float[np.ndarray, "length size"]]
Pixels = Float[Array, "batch _ _ channels"]


def linear(distance: Float[np.ndarray, "length size"]) -> Float[np.ndarray, "length size"]:
    """Return the kernel of bilinear interpolation.

    Args:
      distance: Distances from a pixel, in pixels.

    Example:
      >>> linear(np.array([[-0.25, 0.0, 2.0]])).tolist()
      [[0.75, 1.0, 0.0]]
    """
    return np.maximum(0.0, 1 - np.abs(distance))


def cubic(distance: Float[np.ndarray, "length size"]) -> Float[np.ndarray, "length size"]:
    """Return the kernel of bicubic interpolation that Pillow has.

    Args:
      distance: Distances from a pixel, in pixels.

    Example:
      >>> cubic(np.array([[0.0, 0.5, -1.5, 3.0]])).tolist()
      [[1.0, 0.5625, -0.0625, 0.0]]

    Source: Keys, 1981, with a = -1/2.
    """
    x = np.abs(distance)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a tool brings images to the size and range of its network.

    Attributes:
      how: Description for a protocol.
      kernel: Weight of a pixel by its distance.
      antialias: Whether the kernel becomes wider where images shrink.
      from_corners: Whether pixel ``i`` of the result is at ``i * length / size``, as in TensorFlow 1, and not half a
        pixel of either side further.
      rounds: Whether pixels are rounded to 8 bits behind the width and again behind the height, as Pillow does it; the
        width comes first, as before Pillow 13, which begins with the height where that shrinks more.
      divisor: The range [0, 255] is divided by this, and 1 subtracted.

    Example:
      >>> images = jnp.full((2, 32, 48, 3), 255, jnp.uint8)
      >>> scaled = SCALINGS["clean-fid"](images, 299)
      >>> scaled.shape, float(scaled.max())
      ((2, 299, 299, 3), 0.9921875)
    """

    how: str
    kernel: Kernel
    antialias: bool = False
    from_corners: bool = False
    rounds: bool = False
    divisor: float = 127.5

    def __call__(self, images: Array, size: Size) -> Pixels:
        """Scale images of any height and width; pure, and may be compiled with a static ``size``.

        Args:
          images: uint8 ``[batch, height, width, channels]``.
          size: Height and width of the result in pixels, or one number for both.

        Returns:
          Images in [-1, 1].

        Raises:
          UserError: The images are not of 8 bits, on which the tools are defined.
        """
        height, width = (size, size) if isinstance(size, int) else size
        return self.apply(images, self.weights(images.shape[1], height), self.weights(images.shape[2], width))

    def weights(self, length: int, size: int) -> Float32[np.ndarray, "{length} {size}"]:
        """Return the weight of each pixel along a side in each pixel of the result.

        Args:
          length: Pixels along the side.
          size: Pixels of the result.

        Example:
          >>> SCALINGS["tf1"].weights(2, 4).T.tolist()
          [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
        """
        ratio, half = length / size, 0.0 if self.from_corners else 0.5
        # Pillow computes places in double precision, PyTorch and TensorFlow do not.
        number = np.float64 if self.antialias else np.float32
        places = (np.arange(size, dtype=number) + number(half)) * number(ratio) - number(half)
        distances = np.arange(length)[:, None] - places[None]
        weights = self.kernel(distances / max(ratio, 1.0) if self.antialias else distances)
        # Beyond an edge this repeats the last pixel.
        return (weights / weights.sum(axis=0, keepdims=True)).astype(np.float32)

    def apply(
        self,
        images: Array,
        of_rows: Float32[Array | np.ndarray, "height rows"],
        of_columns: Float32[Array | np.ndarray, "width columns"],
    ) -> Pixels:
        """Scale images by the weights of each side; those of padding are zeros.

        Args:
          images: uint8 ``[batch, height, width, channels]``.
          of_rows: Weights of the height.
          of_columns: Weights of the width.

        Returns:
          Images in [-1, 1].

        Raises:
          UserError: The images are not of 8 bits.
        """
        if images.dtype != jnp.uint8:
            raise UserError(f"`images` must be uint8, got {images.dtype}; round pixels to 8 bits, as files have them.")
        pixels = images.astype(jnp.float32)
        for product, weights in (("bhwc,wv->bhvc", of_columns), ("bhwc,hu->buwc", of_rows)):
            pixels = jnp.einsum(product, pixels, weights, precision="highest")
            if self.rounds:
                # Halves go up, where jnp.round would take the even neighbor.
                pixels = jnp.floor(jnp.clip(pixels, 0, 255) + 0.5)
        return jnp.clip(pixels, 0, 255) / self.divisor - 1


SCALINGS = {
    "pytorch-fid": Scaling("bilinear without antialiasing, as pytorch-fid", linear),
    "clean-fid": Scaling("antialiased bicubic, not rounded, as clean-fid", cubic, antialias=True, divisor=128.0),
    "tf1": Scaling(
        "bilinear from corners, as TensorFlow 1, guided diffusion and torch-fidelity",
        linear,
        from_corners=True,
        divisor=128.0,
    ),
    "dgm-eval": Scaling("antialiased bicubic in 8 bits, as dgm-eval", cubic, antialias=True, rounds=True),
    "torch-fidelity-dinov2": Scaling("bilinear from corners, as torch-fidelity for DINOv2", linear, from_corners=True),
    "fvd": Scaling("bilinear from corners, as TensorFlow 1 in the code of FVD", linear, from_corners=True),
}
"""The scalings by the name of the tool."""
