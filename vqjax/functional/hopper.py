"""The nearest-code search on an NVIDIA Hopper GPU: one fused kernel in Pallas (Mosaic GPU).

Tensor cores multiply bfloat16 numbers, and three of these hold a float32: the six largest of the nine products of such
parts give a product of float32 accuracy. The kernel keeps only the best code of each token, so that no score leaves
the chip. On an H200 it takes half the time of a search with products in float32 (docs/performance.md).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jaxtyping import Array, BFloat16, Float, Int

_TOKENS_PER_TILE = 128
_CODES_PER_TILE = 128
_FEATURES_PER_TILE = 64
# The fastest of what was tried on an H200: two blocks share a multiprocessor.
_STAGES = 3
# Products that may be under way while the next ones are started.
_DELAY = 1
# The parts that are multiplied, from the largest product to those of 2^-16; the rest is below float32's last bit.
_PARTS_OF_TOKENS = (0, 0, 1, 0, 2, 1)
_PARTS_OF_CODES = (0, 1, 0, 2, 0, 1)
# Half the square of a padding code: its score is below that of every code.
_PADDING_HALF_SQUARE = 3e38


def nearest(
    tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], *, interpret: bool = False
) -> Int[Array, " tokens"]:
    """Find the code with the smallest Euclidean distance to each token, on one Hopper GPU.

    Products are as accurate as those of float32 if the numbers are small beside the distances between codes:
    :func:`vqjax.functional.nearest_codes`, which calls it, subtracts the mean of the codes from both.

    Args:
      tokens: Vectors in float32.
      codes: The codebook in float32.
      interpret: Simulate the GPU, on any backend.

    Returns:
      int32 indices in ``[0, codes)``; ties go to the lowest index. No gradient passes.

    Example:
      >>> from vqjax.functional import nearest_codes
      >>> nearest_codes(jnp.array([[4.0], [1.0]]), jnp.array([[0.0], [5.0]])).tolist()  # by this kernel on such a GPU
      [1, 0]
    """
    # A kernel counts in 32 bits.
    with jax.enable_x64(False):
        return _nearest(tokens, codes, interpret)


def _nearest(
    tokens: Float[Array, "tokens dim"], codes: Float[Array, "codes dim"], interpret: bool
) -> Int[Array, " tokens"]:
    num_tokens, (num_codes, dim) = tokens.shape[0], codes.shape
    if num_tokens == 0:
        return jnp.zeros(0, jnp.int32)
    # The score is the product with the code less half its square. The square is three more features (its bfloat16
    # parts), which are one in every token.
    half_squares = 0.5 * jnp.sum(jnp.square(codes), axis=-1, keepdims=True)
    of_tokens = [_bfloat16_parts(tokens)[part] for part in _PARTS_OF_TOKENS]
    of_codes = [_bfloat16_parts(codes)[part] for part in _PARTS_OF_CODES]
    left = jnp.concatenate([*of_tokens, jnp.ones((num_tokens, 3), jnp.bfloat16)], axis=1)
    right = jnp.concatenate([*of_codes, *_bfloat16_parts(-half_squares)], axis=1)
    features = _multiple(left.shape[1], _FEATURES_PER_TILE)
    left = _padded(left, _multiple(num_tokens, _TOKENS_PER_TILE), features)
    right = _padded(right, _multiple(num_codes, _CODES_PER_TILE), features)
    right = right.at[num_codes:, len(of_codes) * dim].set(-_PADDING_HALF_SQUARE)
    return _largest_product(left, right.T, interpret)[:num_tokens]


def _bfloat16_parts(x: Float[Array, "rows columns"]) -> list[BFloat16[Array, "rows columns"]]:
    """Split float32 into three numbers of eight bits each, whose sum it is."""
    parts = []
    for _ in range(3):
        # Rounded by its bits: XLA may leave out a conversion to bfloat16 and back.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(1 << 15) & jnp.uint32(0xFFFF0000)
        part = jax.lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts


def _multiple(number: int, of: int) -> int:
    """Round up to a multiple."""
    return -(-number // of) * of


def _padded(x: BFloat16[Array, "rows columns"], rows: int, columns: int) -> BFloat16[Array, "{rows} {columns}"]:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))


def _largest_product(
    left: BFloat16[Array, "tokens features"], right: BFloat16[Array, "features codes"], interpret: bool
) -> Int[Array, " tokens"]:
    """Return the first column of ``right`` with the largest product, per row of ``left``; sizes are whole tiles."""
    num_tokens, features = left.shape
    num_codes = right.shape[1]
    tile = (_TOKENS_PER_TILE, _CODES_PER_TILE)
    steps = features // _FEATURES_PER_TILE
    delay = min(_DELAY, steps - 1)
    swizzle = gpu.find_swizzle(_FEATURES_PER_TILE * 16)
    transforms = (gpu.TilingTransform((8, swizzle // 2)), gpu.SwizzleTransform(swizzle))  # pyright: ignore[reportAbstractUsage]

    def kernel(left, right, indices):
        rows = pl.ds(jax.lax.axis_index("tiles") * _TOKENS_PER_TILE, _TOKENS_PER_TILE)

        def products(columns):
            def scoped(sums):
                def multiply(_, left, right):
                    gpu.wgmma(sums, left, right)
                    gpu.wgmma_wait(delay)

                spec = functools.partial(gpu.BlockSpec, transforms=transforms, delay_release=delay)
                gpu.emit_pipeline(
                    multiply,
                    grid=(steps,),
                    in_specs=[
                        spec((tile[0], _FEATURES_PER_TILE), lambda k: (0, k)),
                        spec((_FEATURES_PER_TILE, tile[1]), lambda k: (k, 0)),
                    ],
                    max_concurrent_steps=min(_STAGES, steps),
                )(left.at[rows], right.at[:, columns])
                return sums[...]

            return pl.run_scoped(scoped, gpu.ACC(tile, jnp.float32))

        def search_tile(number, best):
            best_score, best_index = best
            scores = products(pl.ds(number * tile[1], tile[1]))
            score = jnp.max(scores, axis=1)
            # Mosaic has no argmax: the lowest of the columns that hold the maximum.
            column = gpu.broadcasted_iota(jnp.int32, tile, 1, layout=gpu.Layout.WGMMA)
            is_best = scores == jax.lax.broadcast_in_dim(score, tile, (0,))
            index = number * tile[1] + jnp.min(jnp.where(is_best, column, tile[1] - 1), axis=1)
            better = score > best_score
            return jnp.where(better, score, best_score), jnp.where(better, index, best_index)

        nothing = (jnp.full(tile[:1], -jnp.inf, jnp.float32), jnp.zeros(tile[:1], jnp.int32))
        nothing = tuple(gpu.layout_cast(x, gpu.Layout.WGMMA.reduce(1)) for x in nothing)
        indices[rows] = jax.lax.fori_loop(0, num_codes // tile[1], search_tile, nothing)[1]

    return gpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((num_tokens,), jnp.int32),
        grid=(num_tokens // tile[0],),
        grid_names=("tiles",),
        compiler_params=gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup),
        interpret=gpu.InterpretGPUParams() if interpret else None,
    )(left, right)
