"""Distance of images by their spectra, which tells blur and false texture from errors of single pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.data import to_model_range
from vqjax.evaluation.metric import ImageMean, Outputs

Images = Float[Array, "batch height width channels"]

# Of the gray levels of a uint8 image: below it a spectrum is rounding.
_FLOOR = 1e-8


def log_spectral_distance(x: Images, y: Images) -> Float[Array, " batch"]:
    r"""Compute the log-spectral distance of the luminance of images, in decibels.

    .. math:: d(x, y) = \sqrt{\mathrm{mean}_f \big(10 \log_{10} P_x(f) - 10 \log_{10} P_y(f)\big)^2}

    with the power :math:`P(f)` of a two-dimensional Fourier transform behind a Hann window. Where things are does not
    matter, as phases are left out.

    Args:
      x: Images in [-1, 1].
      y: Images of the same shape.

    Returns:
      A distance per pair, in decibels; 0 for equal images.

    Example:
      >>> import jax
      >>> noise = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
      >>> print(log_spectral_distance(noise, noise), log_spectral_distance(noise, noise / 10).round(1))
      [0.] [20.]
    """
    of_x, of_y = (10 * jnp.log10(_power(images) + _FLOOR) for images in (x, y))
    return jnp.sqrt(jnp.mean(jnp.square(of_x - of_y), axis=(1, 2)))


def _power(images: Images) -> Float[Array, "batch height frequencies"]:
    gray = jnp.mean(images, axis=-1)
    window = jnp.outer(jnp.hanning(gray.shape[1]), jnp.hanning(gray.shape[2]))
    centered = gray - jnp.mean(gray, axis=(1, 2), keepdims=True)
    return jnp.square(jnp.abs(jnp.fft.rfft2(centered * window[None]))) / jnp.sum(jnp.square(window))


class LogSpectralDistance(ImageMean):
    """Mean of :func:`log_spectral_distance`, a metric for :func:`vqjax.evaluation.evaluate`."""

    @property
    def protocol(self) -> dict[str, str]:
        return {"log_spectral_distance": "dB, luminance behind a Hann window; pixels clipped to [-1, 1]"}

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        images, reconstruction = to_model_range(outputs["image"]), jnp.clip(outputs["reconstruction"], -1, 1)
        return {"log_spectral_distance": log_spectral_distance(images, reconstruction)}
