"""Mixed-radix encoding of per-feature levels, or of digits, as one index."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from vqjax.errors import UserError


def to_index(levels: Int[Array, "*batch features"], radices: Sequence[int]) -> Int[Array, "*batch"]:
    r"""Join the levels of all features into one index; the first feature varies fastest.

    .. math:: i = \sum_j l_j \prod_{m<j} L_m

    Integer arithmetic throughout, exact for every product of radices below 2^31.

    Args:
      levels: :math:`l_j` in ``[0, radices[j])``.
      radices: :math:`L_j`, the number of levels of each feature.

    Returns:
      int32 indices in ``[0, prod(radices))``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(to_index(jnp.array([[2, 0], [2, 1]]), (3, 2)))
      [2 5]
    """
    place_values = jnp.broadcast_to(_place_values(radices), levels.shape)
    return jnp.sum(levels.astype(jnp.int32) * place_values, axis=-1, dtype=jnp.int32)


def to_levels(index: Integer[Array, "*batch"], radices: Sequence[int]) -> Int[Array, "*batch features"]:
    """Split an index into the levels of all features; the inverse of :func:`to_index`.

    Args:
      index: Indices in ``[0, prod(radices))``, of any integer dtype.
      radices: The number of levels of each feature.

    Returns:
      int32 levels along a new last axis.

    Example:
      >>> import jax.numpy as jnp
      >>> to_levels(jnp.array([2, 5]), (3, 2)).tolist()
      [[2, 0], [2, 1]]
    """
    shape = (*index.shape, len(radices))
    place_values = jnp.broadcast_to(_place_values(radices), shape)
    radix = jnp.broadcast_to(jnp.asarray(radices, jnp.int32), shape)
    return jnp.broadcast_to(index.astype(jnp.int32)[..., None], shape) // place_values % radix


def to_digits(index: Integer[Array | np.ndarray, "*batch"], sizes: Sequence[int]) -> Int[Array, "*batch digits"]:
    r"""Split an index of a large vocabulary into digits, the most significant first.

    A transformer that gives each digit a distribution needs :math:`\sum_j L_j` outputs instead of
    :math:`\prod_j L_j`: 1,024 for the 262,144 codes of two digits of 512.

    Args:
      index: Indices in ``[0, prod(sizes))``, of any integer dtype.
      sizes: :math:`L_j`, the number of values of each digit; the product is below 2^31.

    Returns:
      int32 digits along a new last axis.

    Example:
      >>> to_digits(np.array([0, 513, 262_143]), (512, 512)).tolist()
      [[0, 0], [1, 1], [511, 511]]
      >>> to_digits(np.array(123), (10, 10, 10)).tolist()
      [1, 2, 3]

    Source: Luo et al., 2024 (arXiv 2409.04410), who call digits subtokens.
    """
    return to_levels(jnp.asarray(index), sizes[::-1])[..., ::-1]


def from_digits(digits: Integer[Array | np.ndarray, "*batch digits"], sizes: Sequence[int]) -> Int[Array, "*batch"]:
    """Join digits, the most significant first, into one index; the inverse of :func:`to_digits`.

    Args:
      digits: Digits along the last axis, each in ``[0, sizes[j])``.
      sizes: The number of values of each digit.

    Returns:
      int32 indices in ``[0, prod(sizes))``.

    Raises:
      UserError: The last axis does not have as many digits as there are sizes.

    Example:
      >>> from_digits(np.array([[0, 0], [1, 1], [511, 511]]), (512, 512)).tolist()
      [0, 513, 262143]
    """
    if digits.shape[-1:] != (len(sizes),):
        raise UserError(
            f"digits must be {len(sizes)} along the last axis for sizes={tuple(sizes)}, got shape "
            f"{list(digits.shape)}; give one size for each digit."
        )
    return to_index(jnp.asarray(digits)[..., ::-1], sizes[::-1])


def _place_values(radices: Sequence[int]) -> Int[Array, " features"]:
    return jnp.asarray([math.prod(radices[:position]) for position in range(len(radices))], jnp.int32)
