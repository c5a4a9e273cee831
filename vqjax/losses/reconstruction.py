"""Reconstruction losses: squared and absolute error of pixels, the likelihood of DALL-E's dVAE, and their sums."""

import abc
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.data import ImageDataset
from vqjax.data.statistics import pixel_variance
from vqjax.errors import UserError
from vqjax.quantizers.validation import require, require_positive, require_weight

Images = Float[Array, "batch *frames height width channels"]
Pixels = Float[Array, "*shape"]

_MARGIN = 0.1


class ReconstructionLoss(abc.ABC):
    """A loss of two batches of images in [-1, 1].

    Args:
      images: Training images, for losses that measure them; they are read when the loss first needs them.
      weight: Factor of the loss.

    Raises:
      UserError: The weight is not a finite number above 0.
    """

    def __init__(self, images: ImageDataset, *, weight: float = 1.0) -> None:
        require_positive("weight", weight)
        self._images, self._weight = images, weight

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
        return self.scale * jnp.mean(self.per_pixel(reconstruction, images))

    @property
    def scale(self) -> float:
        """Factor applied to the mean over pixels."""
        return self._weight

    @abc.abstractmethod
    def per_pixel(self, reconstruction: Images, images: Images) -> Images:
        """Return the loss of each value of a pixel."""


class MeanSquaredError(ReconstructionLoss):
    r"""Mean squared error of pixels in [-1, 1], optionally divided by their variance.

    .. math:: L(\hat x, x) = w\ \mathrm{mean}\,(\hat x - x)^2 \;/\; \sigma^2

    Args:
      images: Training images, whose variance is measured when the loss first needs it.
      divide_by_variance: Divide by the variance of the training pixels; otherwise :math:`\sigma^2 = 1`.
      weight: :math:`w`; 0.25 is the mean squared error of pixels in [0, 1].

    Raises:
      UserError: The weight is not a finite number above 0.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> loss = MeanSquaredError(ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8))
      >>> float(loss(jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))))
      1.0

    Source: van den Oord et al., 2017 (arXiv 1711.00937), and its example in google-deepmind/sonnet for the variance.
    """

    def __init__(self, images: ImageDataset, *, divide_by_variance: bool = False, weight: float = 1.0) -> None:
        super().__init__(images, weight=weight)
        self._divide_by_variance = divide_by_variance

    @functools.cached_property
    def scale(self) -> float:
        """Factor applied to the mean squared error."""
        return self._weight / pixel_variance(self._images) if self._divide_by_variance else self._weight

    def per_pixel(self, reconstruction: Images, images: Images) -> Images:
        """Return the squared error of each value of a pixel."""
        return jnp.square(reconstruction - images)


class MeanAbsoluteError(ReconstructionLoss):
    r"""Mean absolute error of pixels in [-1, 1], the reconstruction loss of VQGAN.

    .. math:: L(\hat x, x) = w\ \mathrm{mean}\,|\hat x - x|

    Args:
      images: Training images, which this loss does not need.
      weight: :math:`w`.

    Raises:
      UserError: The weight is not a finite number above 0.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> loss = MeanAbsoluteError(ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8))
      >>> float(loss(jnp.full((1, 8, 8, 3), 0.5), -jnp.ones((1, 8, 8, 3))))
      1.5

    Source: Esser et al., 2021 (arXiv 2012.09841).
    """

    def per_pixel(self, reconstruction: Images, images: Images) -> Images:
        """Return the absolute error of each value of a pixel."""
        return jnp.abs(reconstruction - images)


class LogitLaplace(ReconstructionLoss):
    r"""Negative log-likelihood of pixels under a logit-Laplace distribution of scale one around the reconstruction.

    The mean of the distribution is that of which DALL-E's dVAE would show the reconstruction,
    :math:`\mu = \mathrm{logit}\,\varphi(\hat x)`, see :func:`logit_laplace`. Beyond the range of pixels, where an
    unbounded decoder may go, :math:`\mu` follows its tangent, so that the gradient is finite and points back.

    Args:
      images: Training images, which this loss does not need.
      weight: Factor of the loss; ViT-VQGAN adds it to the squared error with 0.1.

    Raises:
      UserError: The weight is not a finite number above 0.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> loss = LogitLaplace(ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8))
      >>> gray, white = jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))
      >>> round(float(loss(gray, gray)), 4), bool(loss(white, gray) > loss(gray, gray))
      (-0.6931, True)

    Source: Ramesh et al., 2021 (arXiv 2102.12092), appendix A.3; Yu et al., 2022 (arXiv 2110.04627).
    """

    def per_pixel(self, reconstruction: Images, images: Images) -> Images:
        """Return the negative log-likelihood of each value of a pixel."""
        inside = jnp.clip(reconstruction, -1.0, 1.0)
        # Half of the slope of the pixel map, over p (1 - p) at its ends: the slope of the logit there.
        slope = (0.5 - _MARGIN) / (_MARGIN * (1 - _MARGIN))
        mean = jax.scipy.special.logit(_to_unit(inside)) + slope * (reconstruction - inside)
        return logit_laplace(mean, jnp.zeros_like(mean), images)


class WeightedSum(ReconstructionLoss):
    r"""Sum of the other losses, each with a weight of its own.

    .. math:: L = w \sum_i w_i L_i

    Args:
      images: Training images, which this loss does not need.
      l1: Weight of :class:`MeanAbsoluteError`, at least 0.
      mse: Weight of :class:`MeanSquaredError`, at least 0.
      logit_laplace: Weight of :class:`LogitLaplace`, at least 0.
      weight: :math:`w`, of the sum.

    Raises:
      UserError: A weight is not a finite number of at least 0, or all of them are 0.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> images = ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8)
      >>> loss = WeightedSum(images, mse=1.0, l1=0.5)
      >>> float(loss(jnp.ones((1, 8, 8, 3)), -jnp.ones((1, 8, 8, 3))))
      5.0

    Source: Yu et al., 2022 (arXiv 2110.04627): ``mse=1.0, logit_laplace=0.1``.
    """

    def __init__(
        self,
        images: ImageDataset,
        *,
        l1: float = 0.0,
        mse: float = 0.0,
        logit_laplace: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(images, weight=weight)
        losses = {"l1": (MeanAbsoluteError, l1), "mse": (MeanSquaredError, mse)}
        losses |= {"logit_laplace": (LogitLaplace, logit_laplace)}
        for name, (_, of_term) in losses.items():
            require_weight(name, of_term)
        self._terms = [loss(images, weight=of_term) for loss, of_term in losses.values() if of_term > 0]
        require(bool(self._terms), "mse", mse, "above 0 if l1 and logit_laplace are 0", "give at least one weight")

    def per_pixel(self, reconstruction: Images, images: Images) -> Images:
        """Return the weighted sum for each value of a pixel."""
        return sum(term.scale * term.per_pixel(reconstruction, images) for term in self._terms)


def logit_laplace(mean: Pixels, log_scale: Pixels, images: Pixels) -> Pixels:
    r"""Compute the negative log-likelihood of pixels under a logit-Laplace distribution.

    .. math:: -\log f(y) = \log(2 b\, y (1 - y)) + |\mathrm{logit}(y) - \mu| / b,\quad
      y = \varphi(x) = (1 - 2\epsilon)\, \tfrac{x + 1}{2} + \epsilon,\ \epsilon = 0.1

    A decoder of six channels gives :math:`\mu` and :math:`\log b` of each value; its image is
    :math:`\varphi^{-1}(\mathrm{sigmoid}(\mu))`.

    Args:
      mean: :math:`\mu`.
      log_scale: :math:`\log b`.
      images: Pixels :math:`x` in [-1, 1].

    Returns:
      A number for each value of a pixel, which may be negative.

    Example:
      >>> round(float(logit_laplace(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))), 4)
      -0.6931

    Source: Ramesh et al., 2021 (arXiv 2102.12092), appendix A.3.
    """
    y = _to_unit(images)
    distance = jnp.abs(jax.scipy.special.logit(y) - mean) * jnp.exp(-log_scale)
    return math.log(2) + log_scale + jnp.log(y * (1 - y)) + distance


def _to_unit(pixels: Pixels) -> Pixels:
    """Pixels in [-1, 1] mapped to [0.1, 0.9], where the logit is finite."""
    return (1 - 2 * _MARGIN) * (pixels + 1) / 2 + _MARGIN
