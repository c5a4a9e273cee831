"""Functions of tokens that hold a number per token and code: evaluated for some tokens at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

LARGEST_CHUNK = 2**23
"""Numbers held at once, in float32: 32 MiB."""


def sum_in_chunks(
    sums: Callable, tokens: Float[Array, "tokens dim"], counted: Float[Array, " tokens"], size: int
) -> tuple[Array, ...]:
    """Adds up what a function returns for parts of the tokens.

    Args:
      sums: Maps tokens and their weights to a tuple of sums over these tokens; tokens of weight 0 add nothing.
      tokens: All tokens.
      counted: The weight of each.
      size: Most tokens of a part.

    Returns:
      The sums over all tokens.
    """
    parts = -(-tokens.shape[0] // size)
    if parts <= 1:
        return sums(tokens, counted)
    padding = parts * size - tokens.shape[0]
    tokens = jnp.pad(tokens, ((0, padding), (0, 0))).reshape(parts, size, -1)
    counted = jnp.pad(counted, (0, padding)).reshape(parts, size)

    def add(total, part):
        return jax.tree.map(jnp.add, total, sums(*part)), None

    first = sums(tokens[0], counted[0])
    return jax.lax.scan(add, first, (tokens[1:], counted[1:]))[0]


def map_in_chunks(
    function: Callable[[Array], PyTree[Array]],
    z: Float[Array, "*batch dim"],
    numbers_per_token: int,
    largest: int | None = None,
) -> PyTree[Array]:
    """Maps a function of tokens over parts so small that what it holds per token fits into a chunk.

    Args:
      function: Maps float32 tokens ``[tokens, dim]`` to a result for each, or a tree of such.
      z: Vectors along the last axis.
      numbers_per_token: How many numbers the function holds at once for a token.
      largest: How many it may hold for all tokens of a part; ``LARGEST_CHUNK`` by default.

    Returns:
      The results, in the leading axes of ``z``.
    """
    tokens = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    number = tokens.shape[0]
    parts = min(-(-number * numbers_per_token // (largest or LARGEST_CHUNK)), number)
    if parts <= 1:
        results = function(tokens)
    else:
        size = -(-number // parts)
        padded = jnp.pad(tokens, ((0, parts * size - number), (0, 0)))
        # Every part takes tokens from the whole batch: one that is split over devices stays split in each part.
        results = jax.lax.map(function, jnp.swapaxes(padded.reshape(size, parts, -1), 0, 1))
        results = jax.tree.map(lambda of_parts: jnp.swapaxes(of_parts, 0, 1), results)
        results = jax.tree.map(lambda x: x.reshape(parts * size, *x.shape[2:])[:number], results)
    return jax.tree.map(lambda x: x.reshape(*z.shape[:-1], *x.shape[1:]), results)
