"""Reconstruction losses."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.data import ImageDataset
from vqjax.data.statistics import pixel_variance
from vqjax.errors import UserError

Images = Float[Array, "batch height width channels"]


class MeanSquaredError:
    r"""Mean squared error of pixels in [-1, 1], optionally divided by their variance.

    .. math:: L(\hat x, x) = \mathrm{mean}\,(\hat x - x)^2 \;/\; \sigma^2

    Args:
      images: Training images, whose variance is measured when the loss first needs it.
      divide_by_variance: Divide by the variance of the training pixels; otherwise :math:`\sigma^2 = 1`.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> loss = MeanSquaredError(ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8))
      >>> float(loss(jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))))
      1.0

    Source: van den Oord et al., 2017 (arXiv 1711.00937), and its example in google-deepmind/sonnet for the variance.
    """

    def __init__(self, images: ImageDataset, *, divide_by_variance: bool = False) -> None:
        self._images, self._divide_by_variance = images, divide_by_variance

    @functools.cached_property
    def scale(self) -> float:
        """Factor applied to the mean squared error."""
        return 1 / pixel_variance(self._images) if self._divide_by_variance else 1.0

    def __call__(self, reconstruction: Images, images: Images) -> Float[Array, ""]:
        """Return the loss of a batch.

        Raises:
          UserError: The two are not images of one shape and of a floating-point dtype.
        """
        if reconstruction.shape != images.shape:
            raise UserError(
                f"`reconstruction` must have the shape of the images, got {reconstruction.shape} for {images.shape}; "
                "compare images of one size and number of channels."
            )
        for name, pixels in (("reconstruction", reconstruction), ("images", images)):
            if not jnp.issubdtype(pixels.dtype, jnp.floating):
                raise UserError(
                    f"`{name}` must be floats in [-1, 1], got {pixels.dtype}; use vqjax.data.to_model_range."
                )
        return self.scale * jnp.mean(jnp.square(reconstruction - images))
