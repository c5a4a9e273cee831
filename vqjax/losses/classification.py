"""The loss of classifiers."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vqjax.data import ImageDataset
from vqjax.errors import UserError
from vqjax.quantizers.validation import is_fraction, require


class CrossEntropy:
    r"""Cross-entropy of scores with shares of classes, which label smoothing moves towards equal ones.

    .. math:: L(s, p) = -\sum_k \Big((1 - \varepsilon)\, p_k + \frac{\varepsilon}{K}\Big) \log \mathrm{softmax}(s)_k

    Args:
      images: Training images, which this loss does not need.
      label_smoothing: :math:`\varepsilon`, the share of a label that is spread over all classes.

    Raises:
      UserError: The share is out of range.

    Example:
      >>> import numpy as np
      >>> from vqjax.data.arrays import ArrayDataset
      >>> loss = CrossEntropy(ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8))
      >>> print(loss(jnp.zeros((1, 4)), jnp.array([[0.0, 1.0, 0.0, 0.0]])).round(3))
      1.386

    Source: Szegedy et al., 2016 (arXiv 1512.00567), for label smoothing.
    """

    def __init__(self, images: ImageDataset, *, label_smoothing: float = 0.0) -> None:
        require(is_fraction(label_smoothing), "label_smoothing", label_smoothing, "a number in [0, 1)")
        del images
        self._label_smoothing = label_smoothing

    def __call__(self, logits: Float[Array, "batch classes"], shares: Float[Array, "batch _"]) -> Float[Array, ""]:
        """Return the mean loss of a batch.

        Args:
          logits: Scores of the classes.
          shares: Share of each class in an image: one for its label, or several after mixup.

        Raises:
          UserError: The two are not scores of one shape, such as images.
        """
        if logits.ndim != 2 or logits.shape != shares.shape:
            raise UserError(
                f"`logits` and `shares` must be [batch, classes], got {logits.shape} and {shares.shape}; the loss "
                "'cross_entropy' is one of the task 'classification'."
            )
        smoothed = optax.smooth_labels(shares, self._label_smoothing)
        return jnp.mean(optax.softmax_cross_entropy(logits, smoothed))
