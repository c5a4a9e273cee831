"""Pooling of whole vectors as modules, for lists of layers."""

import flax.linen as nn

from vqjax.functional.pooling import Image, Pooled, max_vector_pool, softmax_vector_pool


class MaxVecPool(nn.Module):
    """:func:`vqjax.functional.pooling.max_vector_pool` as a layer; it has no variables.

    Attributes:
      window: Height and width of a window, in positions.
      stride: Step from one window to the next.
      padding: Positions around the grid on which windows may lie; they take no part.
      dilation: Step between the positions of a window.

    Example:
      >>> import flax.linen as nn, jax
      >>> from vqjax import MaxVecPool
      >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> layers = nn.Sequential([nn.Dense(6), MaxVecPool(window=2)])
      >>> layers.apply(layers.init(jax.random.key(1), x), x).shape
      (2, 4, 4, 6)

    Source: vqtorch (Huh et al., ICML 2023), ``MaxVecPool2d``.
    """

    window: int = 3
    stride: int = 2
    padding: int = 0
    dilation: int = 1

    def __call__(self, x: Image) -> Pooled:
        """Pools."""
        return max_vector_pool(x, self.window, self.stride, self.padding, self.dilation)


class SoftMaxVecPool(nn.Module):
    """:func:`vqjax.functional.pooling.softmax_vector_pool` as a layer; it has no variables.

    Attributes:
      window: Height and width of a window, in positions.
      stride: Step from one window to the next.
      padding: Positions around the grid on which windows may lie; they take no part.
      dilation: Step between the positions of a window.

    Example:
      >>> import jax.numpy as jnp
      >>> from vqjax import SoftMaxVecPool
      >>> SoftMaxVecPool(window=2).apply({}, jnp.ones((2, 8, 8, 4))).shape
      (2, 4, 4, 4)

    Source: vqtorch (Huh et al., ICML 2023), ``SoftMaxVecPool2d``.
    """

    window: int = 3
    stride: int = 2
    padding: int = 0
    dilation: int = 1

    def __call__(self, x: Image) -> Pooled:
        """Pools."""
        return softmax_vector_pool(x, self.window, self.stride, self.padding, self.dilation)
