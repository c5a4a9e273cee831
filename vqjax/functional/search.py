"""The nearest-code search."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.chunks import LARGEST_CHUNK, map_in_chunks


def similarity(
    z: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], distance: str
) -> Float[Array, "tokens codes"]:
    r"""Returns :math:`-|z - e_k|` (not squared), or the cosine of unit vectors.

    The scale is that of vector-quantize-pytorch, so temperatures carry over.

    Args:
      z: Tokens.
      codes: The codebook.
      distance: ``"euclidean"`` or ``"cosine"``.

    Returns:
      float32, differentiable; the gradient of a distance of zero is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> print(similarity(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]]), "euclidean").round(4))
      [[-5.]]
    """
    z, codes = z.astype(jnp.float32), codes.astype(jnp.float32)
    if distance == "cosine":
        return jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    center = jax.lax.stop_gradient(jnp.mean(codes, axis=0, keepdims=True))
    z, codes = z - center, codes - center
    products = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    squares = [jnp.sum(jnp.square(x), axis=-1) for x in (z, codes)]
    squared = squares[0][:, None] + squares[1][None] - 2 * products
    apart = squared > 0
    return -jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


_PRECISION = jax.lax.Precision.HIGHEST
# Larger searches go through the codes chunk by chunk.
_CHUNK_ELEMENTS = LARGEST_CHUNK
_SMALLEST_CHUNK = 128
# On CPUs: 4 MiB, which stay in the cache between the product and the search for the minimum (docs/performance.md).
_CODES_PER_TILE = 1024
_TILE_ELEMENTS = 2**20

# The score of the nearest code of each token, and its index.
Found = tuple[Float[Array, " tokens"], Int[Array, " tokens"]]


def nearest_codes(
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    shards: int = 1,
) -> Int[Array, "*batch"]:
    r"""Finds the code with the smallest Euclidean distance to each vector.

    .. math:: i(z) = \arg\min_k \tfrac12 |e_k - m|^2 - (z - m) \cdot (e_k - m),\quad m = \mathrm{mean}_k\, e_k

    which is :math:`\arg\min_k |z - e_k|^2`: centering both sides changes no distance and keeps the products small,
    and the row constant :math:`|z|^2` only costs digits. Products are taken in float32 accuracy on every backend
    (the default of a GPU, TF32, picks wrong codes). No [tokens, codes] matrix larger than a chunk exists. For unit
    vectors the result is also the code with the largest cosine.

    Args:
      z: Vectors to look up, any leading axes and floating-point dtype.
      codes: The codebook.
      shards: How many devices hold a part of the codebook each, along its first axis (under ``jit``, with a sharded
        array): each searches its own part, and only its best code per token leaves it. Divides the number of codes.

    Returns:
      int32 indices in ``[0, codes)``; ties go to the lowest index. No gradient passes.

    Raises:
      UserError: ``shards`` does not divide the number of codes.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[0.0, 0.0], [1.0, 1.0]])
      >>> print(nearest_codes(jnp.array([[0.9, 0.8], [0.1, -3.0]]), codes))
      [1 0]
    """
    _check_shards(shards, codes.shape[0])
    tokens, codes = center(z, codes)
    if shards == 1:
        return _nearest(tokens, codes)[1].reshape(z.shape[:-1])
    parts = codes.reshape(shards, -1, codes.shape[-1])
    scores, indices = jax.vmap(_nearest, in_axes=(None, 0))(tokens, parts)
    _, shard = _minimum(scores.T)
    found = shard * parts.shape[1] + jnp.take_along_axis(indices, shard[None], axis=0)[0]
    return found.reshape(z.shape[:-1])


def nearest_k_codes(z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"], k: int) -> Int[Array, "*batch k"]:
    """Finds the ``k`` nearest codes of each vector.

    Args:
      z: Vectors to look up, any leading axes and floating-point dtype.
      codes: The codebook.
      k: How many, in ``[1, codes]``.

    Returns:
      int32 indices, nearest first; ties go to the lowest index. No gradient passes.

    Raises:
      UserError: ``k`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [1.0], [5.0]])
      >>> print(nearest_k_codes(jnp.array([[0.9]]), codes, k=2))
      [[1 0]]
    """
    _check_k(k, codes.shape[0])
    tokens, codes = center(z, codes)

    def of_some(tokens: Float[Array, "tokens dim"]) -> Int[Array, "tokens k"]:
        return jax.lax.top_k(-_scores(tokens, codes), k)[1]

    at_once = max(1, _CHUNK_ELEMENTS // codes.shape[0])
    if tokens.shape[0] <= at_once:
        return of_some(tokens).reshape(*z.shape[:-1], k)
    found = jax.lax.map(lambda token: of_some(token[None])[0], tokens, batch_size=at_once)
    return found.reshape(*z.shape[:-1], k)


def nearest_own_codes(z: Float[Array, "*batch dim"], codes: Float[Array, "*batch codes dim"]) -> Int[Array, "*batch"]:
    """Finds the nearest code of each vector in a codebook of its own.

    Args:
      z: Vectors to look up.
      codes: One codebook per vector.

    Returns:
      int32 indices in ``[0, codes)``; ties go to the lowest index. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[[0.0], [1.0]], [[1.0], [0.0]]])
      >>> print(nearest_own_codes(jnp.array([[0.1], [0.1]]), codes))
      [0 1]
    """
    return jnp.argmin(_own_distances(z, codes), axis=-1).astype(jnp.int32)


def nearest_k_own_codes(
    z: Float[Array, "*batch dim"], codes: Float[Array, "*batch codes dim"], k: int
) -> Int[Array, "*batch k"]:
    """Finds the ``k`` nearest codes of each vector in a codebook of its own.

    Args:
      z: Vectors to look up.
      codes: One codebook per vector.
      k: How many, in ``[1, codes]``.

    Returns:
      int32 indices, nearest first; ties go to the lowest index. No gradient passes.

    Raises:
      UserError: ``k`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[[0.0], [1.0]], [[1.0], [0.0]]])
      >>> print(nearest_k_own_codes(jnp.array([[0.1], [0.1]]), codes, k=2))
      [[0 1]
       [1 0]]
    """
    _check_k(k, codes.shape[-2])
    return jax.lax.top_k(-_own_distances(z, codes), k)[1]


def _own_distances(
    z: Float[Array, "*batch dim"], codes: Float[Array, "*batch codes dim"]
) -> Float[Array, "*batch codes"]:
    z, codes = jax.lax.stop_gradient((z.astype(jnp.float32), codes.astype(jnp.float32)))
    return jnp.sum(jnp.square(jnp.expand_dims(z, -2) - codes), axis=-1)


def _check_shards(shards: int, num_codes: int) -> None:
    if not isinstance(shards, int) or shards < 1 or num_codes % shards:
        raise UserError(f"shards={shards!r} is not allowed: use a whole number that divides the {num_codes} codes.")


def _check_k(k: int, num_codes: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= num_codes:
        raise UserError(f"k={k!r} is not allowed: use a whole number in [1, {num_codes}], the number of codes.")


def center(
    z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"]
) -> tuple[Float[Array, "tokens dim"], Float[Array, "codes dim"]]:
    z, codes = jax.lax.stop_gradient((z.astype(jnp.float32), codes.astype(jnp.float32)))
    center = jnp.mean(codes, axis=0)
    tokens = (z - jnp.expand_dims(center, tuple(range(z.ndim - 1)))).reshape(-1, z.shape[-1])
    return tokens, codes - center[None]


def _scores(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Float[Array, "tokens codes"]:
    products = jnp.matmul(tokens, codes.T, precision=_PRECISION)
    return 0.5 * jnp.sum(jnp.square(codes), axis=-1)[None] - products


def _nearest(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Found:
    if jax.default_backend() == "cpu":
        per_tile = _even_chunk(codes.shape[0], _CODES_PER_TILE)
        return map_in_chunks(lambda part: _search(part, codes, per_tile), tokens, per_tile, _TILE_ELEMENTS)
    largest = max(_SMALLEST_CHUNK, _CHUNK_ELEMENTS // max(1, tokens.shape[0]))
    return _search(tokens, codes, _even_chunk(codes.shape[0], largest))


def _even_chunk(number: int, largest: int) -> int:
    """The size of chunks of at most ``largest`` that need the least padding."""
    return -(-number // -(-number // largest))


def _search(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], per_chunk: int) -> Found:
    num_codes, dim = codes.shape
    num_chunks = -(-num_codes // per_chunk)
    # Padding repeats code 0, which never wins a tie against itself at its lower index.
    padding = jnp.broadcast_to(codes[:1], (num_chunks * per_chunk - num_codes, dim))
    chunks = jnp.concatenate([codes, padding]).reshape(num_chunks, per_chunk, dim)

    def body(best, numbered_chunk):
        (best_score, best_index), (number, chunk_codes) = best, numbered_chunk
        score, index = _minimum(_scores(tokens, chunk_codes))
        closer = score < best_score
        index = jnp.where(closer, number * per_chunk + index, best_index)
        return (jnp.where(closer, score, best_score), index), None

    # Made from the tokens, for shard_map's check: the carry varies over devices as they do.
    start = (jnp.full_like(tokens[:, 0], jnp.inf), jnp.zeros_like(tokens[:, 0], jnp.int32))
    if num_chunks == 1:
        return body(start, (0, chunks[0]))[0]
    return jax.lax.scan(body, start, (jnp.arange(num_chunks, dtype=jnp.int32), chunks))[0]


def _minimum(scores: Float[Array, "tokens codes"]) -> Found:
    """The smallest score and the lowest index that has it: two plain minima, which XLA vectorizes on CPUs."""
    smallest = jnp.min(scores, axis=-1)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return smallest, jnp.min(jnp.where(scores == smallest[:, None], index, scores.shape[1]), axis=-1)


def sample_codes(
    key: Key[Array, ""],
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    temperature: float,
    distance: str = "euclidean",
) -> Int[Array, "*batch"]:
    r"""Draws a code for each vector (Gumbel-max).

    .. math:: p(k) = \mathrm{softmax}_k(s_k/\tau),\quad s_k = -|z - e_k| \ \text{or the cosine}

    Args:
      key: Random key.
      z: Vectors, any leading axes.
      codes: The codebook.
      temperature: :math:`\tau`, above 0; towards 0 the nearest code is drawn.
      distance: ``"euclidean"`` or ``"cosine"`` (pass unit vectors).

    Returns:
      int32 indices. No gradient passes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [1.0]])
      >>> drawn = sample_codes(jax.random.key(0), jnp.zeros((1000, 1)), codes, temperature=1.0)
      >>> round(float(drawn.mean()), 1)  # 1 / (1 + e)
      0.3

    Source: vector-quantize-pytorch (``stochastic_sample_codes``); Takida et al., 2022 (arXiv 2205.07547) on why.
    """
    z, codes = jax.lax.stop_gradient((z, codes))
    tokens = z.reshape(-1, z.shape[-1])

    def draw(key_and_token: tuple[Array, Array]) -> Int[Array, ""]:
        key, token = key_and_token
        return jax.random.categorical(key, similarity(token[None], codes, distance)[0] / temperature)

    at_once = max(1, min(tokens.shape[0], LARGEST_CHUNK // codes.shape[0]))
    drawn = jax.lax.map(draw, (jax.random.split(key, tokens.shape[0]), tokens), batch_size=at_once)
    return drawn.astype(jnp.int32).reshape(z.shape[:-1])
