"""Beam search over the levels of a residual quantizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Vectors = Float[Array, "*batch beams dim"]
Candidates = Callable[[int, Vectors, Vectors, int], Int[Array, "*batch beams candidates"]]
Codes = Callable[[int, Int[Array, "*batch beams candidates"], Vectors], Float[Array, "*batch beams candidates dim"]]


def beam_search(
    x: Float[Array, "*batch dim"],
    num_levels: int,
    size: int,
    candidates: Candidates,
    codes_of: Codes,
    depths: Int[Array, "*batch"] | None = None,
) -> Int[Array, "*batch levels"]:
    r"""Finds codes for all levels whose sum is close to a vector.

    After every level the ``size`` partial sums :math:`s` with the smallest :math:`|x - s|^2` stay, and in the end the
    best one is returned: what is minimized is what is left after the last level, not a sum over levels.

    Args:
      x: Vectors to describe.
      num_levels: Number of levels.
      size: Beams kept.
      candidates: ``(level, residuals, sums, count) -> indices``: the nearest codes of each beam's residual.
      codes_of: ``(level, indices, sums) -> codes``.
      depths: Levels that each vector may use; all by default.

    Returns:
      int32 indices, without gradient. Those of levels past a vector's depth mean nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[[1.0], [0.4]], [[0.1], [0.0]]])  # 0.5 is nearer to 0.4, and exact only with both levels
      >>> nearest = lambda level, r, s, k: jax.lax.top_k(-jnp.abs(r - codes[level].reshape(1, 1, 2)), k)[1]
      >>> beam_search(jnp.array([[0.5]]), 2, 2, nearest, lambda level, i, s: codes[level][i]).tolist()
      [[1, 0]]

    Source: Vallaeys et al., 2025 (arXiv 2501.03078), Section 3.2.
    """
    x = jax.lax.stop_gradient(x)[..., None, :]
    sums = jnp.zeros_like(x)
    path = jnp.zeros((*x.shape[:-1], 0), jnp.int32)
    for level in range(num_levels):
        indices = candidates(level, x - sums, sums, size)
        codes = jax.lax.stop_gradient(codes_of(level, indices, sums))
        if depths is not None:
            # Past its depth a vector adds nothing: its best beam stays the first.
            codes = jnp.where((depths > level)[..., None, None, None], codes, jnp.zeros_like(codes))
        longer = sums[..., None, :] + codes
        left = jnp.sum(jnp.square(x[..., None, :] - longer), axis=-1)
        grown = jnp.concatenate([_repeat(path, indices.shape[-1]), indices[..., None]], axis=-1)
        sums, path = _best(left, longer, grown, 1 if level == num_levels - 1 else size)
    return path[..., 0, :]


def _repeat(path: Int[Array, "*batch beams levels"], times: int) -> Int[Array, "*batch beams candidates levels"]:
    return jnp.broadcast_to(path[..., None, :], (*path.shape[:-1], times, path.shape[-1]))


def _best(
    left: Float[Array, "*batch beams candidates"],
    sums: Float[Array, "*batch beams candidates dim"],
    paths: Int[Array, "*batch beams candidates levels"],
    size: int,
) -> tuple[Float[Array, "*batch kept dim"], Int[Array, "*batch kept levels"]]:
    batch, count = left.shape[:-2], left.shape[-2] * left.shape[-1]
    _, kept = jax.lax.top_k(-left.reshape(*batch, count), min(size, count))

    def keep(values: Array) -> Array:
        return jnp.take_along_axis(values.reshape(*batch, count, values.shape[-1]), kept[..., None], axis=-2)

    return keep(sums), keep(paths)
