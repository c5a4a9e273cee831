"""What masked tokens look like."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
