"""What masked tokens look like."""

from collections.abc import Callable

import jax.numpy as jnp
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
    indices: Integer[Array, "*indices"],
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
    check_indices(indices)
    # In the caller's dtype -1 and num_codes might not exist: token files hold uint8.
    indices = indices.astype(jnp.int32)
    valid, masked = (indices >= 0) & (indices < num_codes), indices == -1
    vectors = decode(jnp.where(valid, indices, 0))
    if several:
        valid, masked = jnp.all(valid, axis=-1), jnp.all(masked, axis=-1)
    return jnp.where(valid[..., None], vectors, jnp.where(masked, 0.0, jnp.nan)[..., None])


def check_indices(indices: Array) -> None:
    """Refuses indices that are no integers."""
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise UserError(f"indices has dtype {indices.dtype}: decode takes integers, as encode returns them.")
