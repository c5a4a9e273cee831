"""The nearest-code search, similarities to all codes, and stochastic assignment."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.chunks import chunk_size, map_in_chunks
from vqjax.functional.numbers import Number
from vqjax.functional.sharding import with_automatic_axes
from vqjax.functional.target import target

_PRECISION = jax.lax.Precision.HIGHEST
_NEARLY_ALL = 0.9
_MIN_CODES_PER_CHUNK = 128
# On CPUs scores are computed in tiles of 4 MiB, which stay in the cache between the product and the search for the
# minimum (docs/performance.md).
_CODES_PER_TILE = 1024
_TILE_ELEMENTS = 2**20
# On other devices one large product is faster than several: 14 ms instead of 16 on an H200 with a quarter of a GiB.
_CHUNK_ELEMENTS = 2**26

# The score of the nearest code of each token, and its index.
Nearest = tuple[Float[Array, " tokens"], Int[Array, " tokens"]]


@with_automatic_axes(like="z")
def nearest_codes(
    z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"], *, shards: int = 1
) -> Int[Array, "*batch"]:
    r"""Find the code with the smallest Euclidean distance to each latent.

    .. math:: i(z) = \arg\min_k \tfrac12 |e_k - m|^2 - (z - m) \cdot (e_k - m),\quad m = \mathrm{mean}_k\, e_k

    which is :math:`\arg\min_k |z - e_k|^2`: centering both sides changes no distance and keeps the products small,
    and the row constant :math:`|z|^2` would only cost digits. Products have float32 accuracy on every backend (TF32,
    the default of a GPU, picks wrong codes). No [tokens, codes] matrix larger than a chunk is made. For unit vectors
    the result is also the code with the largest cosine.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: The codebook.
      shards: Number of devices that the codebook is divided over along its first axis (under ``jit``, as a sharded
        array); must divide the number of codes. Each device searches its own part, and only its best code per token
        leaves it.

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
    num_codes = codes.shape[0]
    if not isinstance(shards, int | np.integer) or shards < 1 or num_codes % shards:
        raise UserError(
            f"shards must be an integer that divides the number of codes, {num_codes}, got {shards!r}; use 1 for "
            "a codebook that every device holds."
        )
    tokens, codes = centered(z, codes)
    if shards == 1:
        return _nearest_index(tokens, codes).reshape(z.shape[:-1])
    parts = codes.reshape(shards, -1, codes.shape[-1])
    scores, indices = jax.vmap(_nearest, in_axes=(None, 0))(tokens, parts)
    _, shard = _minimum(scores.T)
    nearest = shard * parts.shape[1] + jnp.take_along_axis(indices, shard[None], axis=0)[0]
    return nearest.reshape(z.shape[:-1])


@with_automatic_axes(like="z")
def nearest_k_codes(z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"], k: int) -> Int[Array, "*batch k"]:
    """Find the ``k`` nearest codes of each latent.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: The codebook.
      k: Number of codes per latent, in ``[1, codes]``.

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
    tokens, codes = centered(z, codes)

    def of_chunk(tokens: Float[Array, "tokens dim"]) -> Int[Array, "tokens k"]:
        return jax.lax.top_k(-_scores(tokens, codes), k)[1]

    return map_in_chunks(of_chunk, tokens, codes.shape[0]).reshape(*z.shape[:-1], k)


def nearest_own_codes(z: Float[Array, "*batch dim"], codes: Float[Array, "*batch codes dim"]) -> Int[Array, "*batch"]:
    """Find the nearest code of each latent if every latent has its own codebook.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: One codebook per latent.

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
    """Find the ``k`` nearest codes of each latent if every latent has its own codebook.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: One codebook per latent.
      k: Number of codes per latent, in ``[1, codes]``.

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


def similarity(
    z: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], distance: str
) -> Float[Array, "tokens codes"]:
    r"""Compute :math:`-|z - e_k|`, its square, or the inner product, which is the cosine of unit vectors.

    The scale of ``"euclidean"``, without a square, is that of vector-quantize-pytorch, and that of
    ``"squared_euclidean"`` that of MaskGIT, so temperatures carry over.

    Args:
      z: Latents.
      codes: The codebook.
      distance: ``"euclidean"``, ``"squared_euclidean"`` or ``"cosine"``.

    Returns:
      Similarities in float32, differentiable; the gradient of a distance of zero is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> print(similarity(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]]), "euclidean").round(4))
      [[-5.]]
    """
    z, codes = z.astype(jnp.float32), codes.astype(jnp.float32)
    if distance == "cosine":
        return jnp.matmul(z, codes.T, precision=_PRECISION)
    center = center_of(codes)[None]
    z, codes = z - center, codes - center
    products = jnp.matmul(z, codes.T, precision=_PRECISION)
    z_squares, code_squares = (jnp.sum(jnp.square(x), axis=-1) for x in (z, codes))
    squared = z_squares[:, None] + code_squares[None] - 2 * products
    if distance == "squared_euclidean":
        return -squared
    # Double `where`: the slope of the root at zero is infinite, and rounding can make a square negative.
    positive = squared > 0
    return -jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


@with_automatic_axes(like="z")
def sample_codes(
    key: Key[Array, ""],
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    temperature: Number,
    distance: str = "euclidean",
) -> Int[Array, "*batch"]:
    r"""Draw a code for each latent, nearer codes with higher probability.

    .. math:: p(k) = \mathrm{softmax}_k(s_k/\tau),\quad s_k = -|z - e_k| \ \text{or the cosine}

    Args:
      key: Random key.
      z: Latents, any leading axes.
      codes: The codebook.
      temperature: :math:`\tau`, above 0; the nearest code is drawn in the limit of 0.
      distance: ``"euclidean"``, or ``"cosine"`` for unit vectors.

    Returns:
      int32 indices. No gradient passes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [1.0]])
      >>> drawn = sample_codes(jax.random.key(0), jnp.zeros((1000, 1)), codes, temperature=1.0)
      >>> round(float(drawn.mean()), 1)  # 1 / (1 + e)
      0.3

    Source: vector-quantize-pytorch (``stochastic_sample_codes``); Takida et al., 2022 (arXiv 2205.07547) on the
    effect.
    """
    z, codes = jax.lax.stop_gradient((z, codes))
    tokens = z.reshape(-1, z.shape[-1])

    # One key per token: the draw does not depend on the chunks.
    def draw(key_and_token: tuple[Array, Array]) -> Int[Array, ""]:
        key, token = key_and_token
        return jax.random.categorical(key, similarity(token[None], codes, distance)[0] / temperature)

    tokens_per_chunk = max(1, min(tokens.shape[0], chunk_size(codes.shape[0])))
    drawn = jax.lax.map(draw, (jax.random.split(key, tokens.shape[0]), tokens), batch_size=tokens_per_chunk)
    return drawn.astype(jnp.int32).reshape(z.shape[:-1])


def centered(
    z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"]
) -> tuple[Float[Array, "tokens dim"], Float[Array, "codes dim"]]:
    """Subtract the center of the codes from latents and codes, in float32 and without gradient."""
    z, codes = jax.lax.stop_gradient((z.astype(jnp.float32), codes.astype(jnp.float32)))
    center = center_of(codes)
    tokens = (z - jnp.expand_dims(center, tuple(range(z.ndim - 1)))).reshape(-1, z.shape[-1])
    return tokens, codes - center[None]


def center_of(codes: Float[Array, "codes dim"]) -> Float[Array, " dim"]:
    """Return a point to subtract from latents and codes, which changes no distance and keeps the products small.

    It is the mean of the codes if nearly all of them are nearer to it than to zero, else zero: codes far away move the
    mean away from the others, whose distances would be lost in rounding.

    Args:
      codes: The codebook, in float32.

    Returns:
      The point; no gradient passes.
    """
    codes = jax.lax.stop_gradient(codes)
    mean = jnp.mean(codes, axis=0)
    # |e - m| < |e|
    nearer = 2 * jnp.sum(codes * mean[None], axis=-1) > jnp.sum(jnp.square(mean))
    return jnp.where(jnp.mean(nearer, dtype=jnp.float32) > _NEARLY_ALL, mean, 0.0)


def _scores(
    tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], precision: jax.lax.PrecisionLike = _PRECISION
) -> Float[Array, "tokens codes"]:
    """Half the squared distances less the row constant."""
    products = jnp.matmul(tokens, codes.T, precision=precision)
    return 0.5 * jnp.sum(jnp.square(codes), axis=-1)[None] - products


def _nearest_index(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Int[Array, " tokens"]:
    if not isinstance(tokens.shape[0], int) or not _alone_on_a_hopper():
        return _nearest(tokens, codes)[1]
    # Decided where the program is compiled: the platform of this process need not be the one that runs it.
    return jax.lax.platform_dependent(
        tokens, codes, cuda=_nearest_by_kernel, default=lambda *arguments: _nearest(*arguments)[1]
    )


def _nearest(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Nearest:
    searches = {"cpu": _nearest_in_tiles, "default": _nearest_in_chunks}
    if _capability() >= (8, 0) and _is_alone():
        # Tensor cores: three products of TF32 parts have float32's accuracy in three quarters of its time. Where XLA
        # divides a program, it forgets that there are to be three, and one has wrong codes (benchmarks/compiled.py).
        searches["cuda"] = functools.partial(_nearest_in_chunks, precision=jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3)
    return jax.lax.platform_dependent(tokens, codes, **searches)


def _alone_on_a_hopper() -> bool:
    """Whether programs are for one Hopper GPU: XLA cannot divide a kernel, and shard_map asks it for types."""
    alone = _is_alone() and not jax.sharding.get_abstract_mesh().manual_axes
    # Older versions of Pallas name the arguments of a kernel otherwise.
    return alone and _capability() == (9, 0) and jax.__version_info__ >= (0, 11)


def _is_alone() -> bool:
    """Whether programs are for one device."""
    return target().client.device_count() == 1


def _capability() -> tuple[int, ...]:
    """Compute capability of the NVIDIA GPU that programs are for; () for other devices."""
    device = target()
    capability = getattr(device, "compute_capability", None) if device.platform == "gpu" else None
    # GPUs of AMD say "gfx942".
    return tuple(map(int, capability.split("."))) if capability and capability[0].isdigit() else ()


@jax.custom_batching.custom_vmap
def _nearest_by_kernel(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Int[Array, " tokens"]:
    from vqjax.functional.hopper import nearest  # imports Pallas

    return nearest(tokens, codes)


@_nearest_by_kernel.def_vmap
def _nearest_of_several(
    axis_size: int, is_batched: Sequence[bool], tokens: Float[Array, "..."], codes: Float[Array, "..."]
) -> tuple[Int[Array, "several tokens"], bool]:
    """Several codebooks, or a map over batches: the kernel searches one."""
    axes = tuple(0 if batched else None for batched in is_batched)
    return jax.vmap(lambda *arguments: _nearest_in_chunks(*arguments)[1], axes, axis_size=axis_size)(
        tokens, codes
    ), True


def _nearest_in_tiles(tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"]) -> Nearest:
    codes_per_tile = _even_chunk(codes.shape[0], _CODES_PER_TILE)
    search = lambda tokens: _search(tokens, codes, codes_per_tile, _minimum_in_two_passes)  # noqa: E731
    return map_in_chunks(search, tokens, codes_per_tile, _TILE_ELEMENTS)


def _nearest_in_chunks(
    tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], precision: jax.lax.PrecisionLike = _PRECISION
) -> Nearest:
    """Take all tokens at once, and as many codes as fit."""
    num_tokens = tokens.shape[0]
    # A symbolic number may become any; tiles of this width are fast for all.
    fits = _CHUNK_ELEMENTS // max(1, num_tokens) if isinstance(num_tokens, int) else _CODES_PER_TILE
    codes_per_chunk = max(_MIN_CODES_PER_CHUNK, fits)
    return _search(tokens, codes, _even_chunk(codes.shape[0], codes_per_chunk), _minimum, precision)


def _even_chunk(number: int, largest: int) -> int:
    """Return the size of at most ``largest`` that pads the last chunk least."""
    return -(-number // -(-number // largest))


def _search(
    tokens: Float[Array, "tokens dim"],
    codes: Float[Array, "codes dim"],
    codes_per_chunk: int,
    minimum: Callable[[Float[Array, "tokens codes"]], Nearest],
    precision: jax.lax.PrecisionLike = _PRECISION,
) -> Nearest:
    num_codes, dim = codes.shape
    num_chunks = -(-num_codes // codes_per_chunk)
    # Padding repeats code 0: ties go to the lowest index, so a copy is never chosen.
    padding = jnp.broadcast_to(codes[:1], (num_chunks * codes_per_chunk - num_codes, dim))
    chunks = jnp.concatenate([codes, padding]).reshape(num_chunks, codes_per_chunk, dim)

    def body(best, numbered_chunk):
        (best_score, best_index), (number, chunk) = best, numbered_chunk
        score, index = minimum(_scores(tokens, chunk, precision))
        # Strictly closer: of equal codes in different chunks the first one stays.
        closer = score < best_score
        index = jnp.where(closer, number * codes_per_chunk + index, best_index)
        return (jnp.where(closer, score, best_score), index), None

    # Made from the tokens, because shard_map checks that the carry varies over the same devices as they do.
    start = (jnp.full_like(tokens[:, 0], jnp.inf), jnp.zeros_like(tokens[:, 0], jnp.int32))
    if num_chunks == 1:
        return body(start, (0, chunks[0]))[0]
    return jax.lax.scan(body, start, (jnp.arange(num_chunks, dtype=jnp.int32), chunks))[0]


def _minimum(scores: Float[Array, "tokens codes"]) -> Nearest:
    """Return the smallest score and the lowest index that has it; NaN is the smallest."""

    def smaller(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        first = (one[0] < other[0]) | (one[0] != one[0]) | ((one[0] == other[0]) & (one[1] < other[1]))
        return jnp.where(first, one[0], other[0]), jnp.where(first, one[1], other[1])

    # One reduction of both: in two, XLA may compute the scores twice, and not to the same bit.
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return jax.lax.reduce((scores, index), (jnp.float32(jnp.inf), jnp.int32(2**31 - 1)), smaller, (1,))


def _minimum_in_two_passes(scores: Float[Array, "tokens codes"]) -> Nearest:
    # Two plain minima, which XLA vectorizes on CPUs; a reduction of two arrays it does not.
    scores = jax.lax.optimization_barrier(scores)
    smallest = jnp.min(scores, axis=-1)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return smallest, jnp.min(jnp.where(scores == smallest[:, None], index, scores.shape[1]), axis=-1)


def _own_distances(
    z: Float[Array, "*batch dim"], codes: Float[Array, "*batch codes dim"]
) -> Float[Array, "*batch codes"]:
    z, codes = jax.lax.stop_gradient((z.astype(jnp.float32), codes.astype(jnp.float32)))
    return jnp.sum(jnp.square(jnp.expand_dims(z, -2) - codes), axis=-1)


def _check_k(k: int, num_codes: int) -> None:
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= num_codes:
        raise UserError(f"k must be an integer in [1, {num_codes}], the number of codes, got {k!r}.")
