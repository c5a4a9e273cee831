"""Mixed-radix encoding of per-feature levels as one index."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, Integer


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


def _place_values(radices: Sequence[int]) -> Int[Array, " features"]:
    return jnp.asarray([math.prod(radices[:position]) for position in range(len(radices))], jnp.int32)
