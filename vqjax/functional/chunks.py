"""Chunked evaluation of computations that hold a number per token and code.

The number of tokens may be symbolic, as in programs that ``jax.export`` makes for batches of any size: chunks then have
a fixed size, and their number depends on the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

CHUNK_ELEMENTS = 2**23
"""Largest number of float32 values held at once: 32 MiB."""


def chunk_size(numbers_per_row: int) -> int:
    """Return how many rows of ``numbers_per_row`` values fit into a chunk; at least 1."""
    return max(1, CHUNK_ELEMENTS // numbers_per_row)


def sum_in_chunks(
    sums: Callable, tokens: Float[Array, "tokens dim"], weights: Float[Array, " tokens"], numbers_per_token: int
) -> tuple[Array, ...]:
    """Sum a function of the tokens over chunks of them.

    Args:
      sums: Maps ``[tokens, dim]`` and their weights to a tuple of sums over these tokens. Tokens of weight 0, with
        which the last chunk is padded, must add nothing.
      tokens: All tokens.
      weights: Weight of each token.
      numbers_per_token: Number of values that ``sums`` holds at once per token.

    Returns:
      The sums over all tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> total = lambda tokens, weights: (jnp.sum(weights * tokens[:, 0]),)
      >>> print(*sum_in_chunks(total, jnp.array([[1.0], [2.0]]), jnp.array([1.0, 0.5]), 1))
      2.0
    """
    size = chunk_size(numbers_per_token)
    num_chunks = -(-tokens.shape[0] // size)
    if isinstance(num_chunks, int) and num_chunks <= 1:
        return sums(tokens, weights)
    padding = num_chunks * size - tokens.shape[0]
    tokens = jnp.pad(tokens, ((0, padding), (0, 0))).reshape(num_chunks, size, -1)
    weights = jnp.pad(weights, (0, padding)).reshape(num_chunks, size)

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, sums(*chunk)), None

    if isinstance(num_chunks, int):
        # The first chunk starts the sum: its results have the types that the carry needs, in mapped functions too.
        first = sums(tokens[0], weights[0])
        return jax.lax.scan(add, first, (tokens[1:], weights[1:]))[0]
    # A batch of unknown size may be empty.
    chunk = jax.ShapeDtypeStruct((size, tokens.shape[2]), tokens.dtype), jax.ShapeDtypeStruct((size,), weights.dtype)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, *chunk))
    return jax.lax.scan(add, zeros, (tokens, weights))[0]


def map_in_chunks(
    function: Callable[[Array], PyTree[Array]],
    z: Float[Array, "*batch dim"],
    numbers_per_token: int,
    max_elements: int | None = None,
) -> PyTree[Array]:
    """Map a function of tokens over chunks of them.

    Args:
      function: Maps float32 tokens ``[tokens, dim]`` to a result per token, or a tree of results.
      z: Vectors along the last axis, any leading axes.
      numbers_per_token: Number of values that ``function`` holds at once per token.
      max_elements: Number of values that it may hold for all tokens of a chunk; ``CHUNK_ELEMENTS`` by default.

    Returns:
      The results, with the leading axes of ``z``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(map_in_chunks(lambda tokens: tokens.sum(axis=-1), jnp.ones((2, 3, 4)), 4))
      [[4. 4. 4.]
       [4. 4. 4.]]
    """
    tokens = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    num_tokens = tokens.shape[0]
    max_elements = max_elements or CHUNK_ELEMENTS
    if isinstance(num_tokens, int):
        num_chunks = max(1, min(-(-num_tokens * numbers_per_token // max_elements), num_tokens))
        size = -(-num_tokens // num_chunks)
    else:
        size = max(1, max_elements // numbers_per_token)
        num_chunks = -(-num_tokens // size)
    if isinstance(num_chunks, int) and num_chunks == 1:
        results = function(tokens)
    else:
        padded = jnp.pad(tokens, ((0, num_chunks * size - num_tokens), (0, 0)))
        # Each chunk takes every `num_chunks`-th token: a batch that is sharded over devices stays sharded in each.
        results = jax.lax.map(function, jnp.swapaxes(padded.reshape(size, num_chunks, -1), 0, 1))
        results = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), results)
        results = jax.tree.map(lambda x: x.reshape(num_chunks * size, *x.shape[2:])[:num_tokens], results)
    return jax.tree.map(lambda x: x.reshape(*z.shape[:-1], *x.shape[1:]), results)
