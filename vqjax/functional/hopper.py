"""Experimental nearest-code search for NVIDIA Hopper GPUs: one fused kernel in Pallas (Mosaic GPU).

Tensor cores multiply bfloat16 numbers, and three of these hold a float32: the six largest of the nine products of such
parts give a product of float32 accuracy. The kernel keeps only the best code of each token, so that no score leaves
the chip. It is tested by simulation; :func:`vqjax.functional.nearest_codes` does not use it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jaxtyping import Array, BFloat16, Float, Int

from vqjax.errors import UserError
from vqjax.functional.search import centered

_TOKENS_PER_TILE = 128
_CODES_PER_TILE = 128
_FEATURES_PER_TILE = 64
_STAGES = 4
# The parts that are multiplied, from the largest product to those of 2^-16; the rest is below float32's last bit.
_PARTS_OF_TOKENS = (0, 0, 1, 0, 2, 1)
_PARTS_OF_CODES = (0, 1, 0, 2, 0, 1)
# Half the square of a padding code: its score is below that of every code.
_PADDING_HALF_SQUARE = 3e38


def nearest_codes(
    z: Float[Array, "*batch dim"], codes: Float[Array, "codes dim"], *, interpret: bool = False
) -> Int[Array, "*batch"]:
    """Find the code with the smallest Euclidean distance to each latent, on one Hopper GPU.

    Returns what :func:`vqjax.functional.nearest_codes` returns, for arrays on one device.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: The codebook.
      interpret: Simulate the GPU, on any backend.

    Returns:
      int32 indices in ``[0, codes)``; ties go to the lowest index. No gradient passes.

    Raises:
      UserError: The default device is not a Hopper GPU, and ``interpret`` is False.

    Example:
      >>> codes = jnp.array([[0.0], [5.0]])
      >>> nearest_codes(jnp.array([[4.0], [1.0]]), codes, interpret=True).tolist()
      [1, 0]
    """
    if not interpret:
        _check_device()
    tokens, codes = centered(z, codes)
    return _search(tokens, codes, interpret).reshape(z.shape[:-1])


def _search(
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


def _check_device() -> None:
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", None) != "9.0":
        raise UserError(
            f"The default device must be a GPU of compute capability 9.0, such as an H100, got {device.device_kind}; "
            "use vqjax.functional.nearest_codes, which runs on any device."
        )


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
    swizzle = gpu.find_swizzle(_FEATURES_PER_TILE * 16)
    transforms = (gpu.TilingTransform((8, swizzle // 2)), gpu.SwizzleTransform(swizzle))

    def kernel(left, right, indices):
        rows = pl.ds(jax.lax.axis_index("tiles") * _TOKENS_PER_TILE, _TOKENS_PER_TILE)

        def products(columns):
            def scoped(sums):
                def multiply(_, left, right):
                    gpu.wgmma(sums, left, right)
                    gpu.wgmma_wait(0)

                gpu.emit_pipeline(
                    multiply,
                    grid=(features // _FEATURES_PER_TILE,),
                    in_specs=[
                        gpu.BlockSpec((tile[0], _FEATURES_PER_TILE), lambda k: (0, k), transforms=transforms),
                        gpu.BlockSpec((_FEATURES_PER_TILE, tile[1]), lambda k: (k, 0), transforms=transforms),
                    ],
                    max_concurrent_steps=min(_STAGES, features // _FEATURES_PER_TILE),
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
