"""Tokens of several scales as one sequence, and back."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from vqjax.errors import UserError


def join_scales(
    maps: Sequence[Float[Array, "..."] | Integer[Array, "..."] | Bool[Array, "..."] | None],
    spatial_dims: int,
    features: int = 0,
) -> Array | None:
    """Puts maps of several sizes behind each other, each row by row.

    Args:
      maps: One per scale, coarse to fine, with the same leading axes; or None for each.
      spatial_dims: Number of axes of space.
      features: Number of axes after those of space.

    Returns:
      One axis of tokens in place of the axes of space; None for None.

    Example:
      >>> import jax.numpy as jnp
      >>> join_scales([jnp.zeros((5, 1, 1), int), jnp.zeros((5, 2, 2), int)], spatial_dims=2).shape
      (5, 5)
    """
    if maps[0] is None:
        return None
    first = maps[0].ndim - features - spatial_dims
    flat = [x.reshape(*x.shape[:first], -1, *x.shape[first + spatial_dims :]) for x in maps]
    return jnp.concatenate(flat, axis=first)


def split_scales(
    indices: Integer[Array, "*batch tokens"], shapes: Sequence[tuple[int, ...]]
) -> tuple[Integer[Array, "..."], ...]:
    """The inverse of :func:`join_scales` for indices, also for those of the first scales only.

    Args:
      indices: Tokens along the last axis.
      shapes: Size of the map of each scale, coarse to fine.

    Returns:
      Indices ``[..., *shape]`` of each scale that is there.

    Raises:
      UserError: The tokens end within a scale.

    Example:
      >>> import jax.numpy as jnp
      >>> [tokens.tolist() for tokens in split_scales(jnp.arange(3), [(1,), (2,), (4,)])]
      [[0], [1, 2]]
    """
    ends = tuple(itertools.accumulate(math.prod(shape) for shape in shapes))
    if indices.ndim < 1 or indices.shape[-1] not in ends:
        raise UserError(f"indices has shape {indices.shape}: its last axis has to end with a scale, one of {ends}.")
    parts = jnp.split(indices, ends[: ends.index(indices.shape[-1])], axis=-1)
    return tuple(part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=False))
