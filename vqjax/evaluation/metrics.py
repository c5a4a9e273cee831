"""How close an image is to another: mean squared error, PSNR and SSIM, each per image."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.errors import UserError

SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K1 = 0.01
_SSIM_K2 = 0.03


def mean_squared_error(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Averages the squared difference over the pixels and channels of each image.

    Args:
      x: Images.
      y: Images in the same range.

    Returns:
      One value per image, in the square of the pixels' unit.

    Example:
      >>> mean_squared_error(jnp.zeros([1, 4, 4, 3]), jnp.full([1, 4, 4, 3], 0.5)).tolist()
      [0.25]
    """
    return jnp.mean(jnp.square(x - y), axis=(1, 2, 3))


def psnr(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Peak signal-to-noise ratio of each image: -10 log10(mean squared error), as the peak is 1.

    Args:
      x: Images in [0, 1].
      y: Images in [0, 1].

    Returns:
      Decibels, one value per image; infinity where the two are identical, so cap it before averaging.

    Example:
      >>> psnr(jnp.zeros([1, 4, 4, 3]), jnp.full([1, 4, 4, 3], 0.1)).round(3).tolist()
      [20.0]
    """
    return -10.0 * jnp.log10(mean_squared_error(x, y))


def ssim(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Structural similarity of each image, with the settings of the paper.

    With means, variances and covariance under a Gaussian window (11 pixels, sigma 1.5), C1 = 0.01^2, C2 = 0.03^2:

      SSIM = (2 mx my + C1) (2 cov + C2) / ((mx^2 + my^2 + C1) (vx + vy + C2))

    averaged over channels and over the places where the window lies within the image. Equals scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)`.

    Args:
      x: Images in [0, 1], at least 11 pixels high and wide.
      y: Images in [0, 1].

    Returns:
      One value per image, in [-1, 1]; 1 where the two are identical.

    Raises:
      UserError: The images are smaller than the window.

    Example:
      >>> x = jnp.linspace(0.0, 1.0, 12 * 12).reshape(1, 12, 12, 1)
      >>> ssim(x, x).round(4).tolist()
      [1.0]

    Source: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity.
    """
    height, width = x.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"x has images of {height} x {width} pixels; SSIM needs at least {SSIM_WINDOW} x {SSIM_WINDOW}: "
            "leave SSIM out, or use larger images."
        )
    # Variances do not depend on the origin; around the mean they do not drown in float32's rounding.
    origin = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    x, y = x - origin, y - origin
    mean_x, mean_y = _blur(x), _blur(y)
    covariance = _blur(x * y) - mean_x * mean_y
    variances = _blur(x * x + y * y) - mean_x**2 - mean_y**2
    mean_x, mean_y = mean_x + origin, mean_y + origin
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return jnp.mean(luminance * (2 * covariance + c2) / (variances + c2), axis=(1, 2, 3))


def _blur(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch inner_height inner_width channels"]:
    # Two products with banded matrices: far faster than a depthwise convolution on a CPU.
    rows, columns = (_blur_matrix(size) for size in images.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, images, precision="highest")


def _blur_matrix(size: int) -> Float[np.ndarray, "inner_size size"]:
    radius = SSIM_WINDOW // 2
    weights = [math.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2) for offset in range(-radius, radius + 1)]
    inner = size - 2 * radius
    bands = [weight * np.eye(inner, size, offset) for offset, weight in enumerate(weights)]
    return (np.sum(bands, axis=0) / sum(weights)).astype(np.float32)
