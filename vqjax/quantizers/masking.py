"""What masked tokens look like."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError


def zero_where_masked(x: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> Float[Array, "*batch dim"]:
    """Vectors, with zeros where the mask is False."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))


def minus_one_where_masked(indices: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None) -> Int[Array, "*batch"]:
    """Indices, with -1 where the mask is False."""
    return indices if mask is None else jnp.where(mask, indices, -1)


def flatten(
    vectors: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None
) -> tuple[Float[Array, "tokens dim"], Bool[Array, " tokens"] | None]:
    """Vectors and mask with all leading axes in one."""
    return vectors.reshape(-1, vectors.shape[-1]), None if mask is None else mask.reshape(-1)


def decode_valid(
    decode: Callable[[Int[Array, "*indices"]], Float[Array, "*batch dim"]],
    indices: Integer[Array | np.ndarray, "*indices"],
    num_codes: int,
    several: bool = False,
) -> Float[Array, "*batch dim"]:
    """Decodes indices: zero vectors for -1, NaN for all others out of range.

    NaN shows, another code in its place would not.

    Args:
      decode: Maps int32 indices in range to vectors.
      indices: Of any integer dtype.
      num_codes: How many codes there are.
      several: Whether a vector has several indices, along the last axis.

    Returns:
      Vectors.

    Raises:
      UserError: The indices are no integers.
    """
    indices = int32_indices(indices, num_codes)
    valid, masked = (indices >= 0) & (indices < num_codes), indices == -1
    vectors = decode(jnp.where(valid, indices, 0))
    if several:
        valid, masked = jnp.all(valid, axis=-1), jnp.all(masked, axis=-1)
    return jnp.where(valid[..., None], vectors, jnp.where(masked, 0.0, jnp.nan)[..., None])


def int32_indices(indices: Integer[Array | np.ndarray, "*indices"], num_codes: int) -> Int[Array, "*indices"]:
    """Indices as int32, whatever their dtype: in range and -1 as they are, all others out of range on either side.

    Args:
      indices: Of any integer dtype. In it -1 and num_codes may not exist (token files hold uint8), or numbers may that
        int32 would turn into others.
      num_codes: How many codes there are.

    Returns:
      int32 indices in ``[-2, num_codes]``.

    Raises:
      UserError: The indices are no integers.
    """
    if not hasattr(indices, "dtype") or not jnp.issubdtype(indices.dtype, jnp.integer):
        kind = getattr(indices, "dtype", type(indices).__name__)
        raise UserError(f"indices has dtype {kind}: decode takes integers in an array, as encode returns them.")
    largest = jnp.iinfo(indices.dtype).max
    if largest < num_codes:
        return jnp.asarray(indices, jnp.int32)
    # NumPy's own clip, as JAX cuts 64 bits to 32 before it does anything.
    clip = np.clip if isinstance(indices, np.ndarray) else jnp.clip
    lowest = -2 if jnp.issubdtype(indices.dtype, jnp.signedinteger) else 0
    return jnp.asarray(clip(indices, lowest, num_codes), jnp.int32)
