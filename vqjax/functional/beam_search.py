"""Beam search over the stages of a residual quantizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.functional.sharding import with_automatic_axes

Vectors = Float[Array, "*batch beams dim"]
Candidates = Callable[[int, Vectors, Vectors, int], Int[Array, "*batch beams candidates"]]
Codes = Callable[[int, Int[Array, "*batch beams candidates"], Vectors], Float[Array, "*batch beams candidates dim"]]


def beam_search(
    x: Float[Array, "*batch dim"],
    num_stages: int,
    beam_size: int,
    candidates: Candidates,
    codes_of: Codes,
    depths: Int[Array, "*batch"] | None = None,
) -> Int[Array, "*batch stages"]:
    r"""Search for the codes of all stages whose sum is closest to a vector.

    After each stage the ``beam_size`` partial sums :math:`s` with the smallest :math:`|x - s|^2` are kept; after the
    last one, the best. The search minimizes the final residual, not the sum over stages.

    Args:
      x: Vectors to quantize.
      num_stages: Number of stages.
      beam_size: Number of partial sums kept per vector.
      candidates: Function ``(stage, residuals, sums, count) -> indices`` that returns the nearest codes of each
        beam's residual.
      codes_of: Function ``(stage, indices, sums) -> codes``.
      depths: Number of stages that each vector may use; all by default.

    Returns:
      int32 indices, without gradient. Those of stages past a vector's depth have no meaning.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[[1.0], [0.4]], [[0.1], [0.0]]])  # 0.5 is nearer to 0.4, and exact only with both stages
      >>> nearest = lambda stage, r, s, k: jax.lax.top_k(-jnp.abs(r - codes[stage].reshape(1, 1, 2)), k)[1]
      >>> beam_search(jnp.array([[0.5]]), 2, 2, nearest, lambda stage, i, s: codes[stage][i]).tolist()
      [[1, 0]]

    Source: Vallaeys et al., 2025 (arXiv 2501.03078), Section 3.2.
    """
    x = jax.lax.stop_gradient(x)[..., None, :]
    sums = jnp.zeros_like(x)
    paths = jnp.zeros_like(x[..., :0], jnp.int32)
    for stage in range(num_stages):
        indices = candidates(stage, x - sums, sums, beam_size)
        codes = jax.lax.stop_gradient(codes_of(stage, indices, sums))
        if depths is not None:
            # Past its depth a vector adds nothing: its best beam stays the first.
            codes = jnp.where((depths > stage)[..., None, None, None], codes, jnp.zeros_like(codes))
        extended = sums[..., None, :] + codes
        error = jnp.sum(jnp.square(x[..., None, :] - extended), axis=-1)
        extended_paths = jnp.concatenate([_repeat(paths, indices.shape[-1]), indices[..., None]], axis=-1)
        sums, paths = _best(error, extended, extended_paths, 1 if stage == num_stages - 1 else beam_size)
    return paths[..., 0, :]


def _repeat(paths: Int[Array, "*batch beams stages"], times: int) -> Int[Array, "*batch beams candidates stages"]:
    return jnp.broadcast_to(paths[..., None, :], (*paths.shape[:-1], times, paths.shape[-1]))


@with_automatic_axes(like="error")
def _best(
    error: Float[Array, "*batch beams candidates"],
    sums: Float[Array, "*batch beams candidates dim"],
    paths: Int[Array, "*batch beams candidates stages"],
    beam_size: int,
) -> tuple[Float[Array, "*batch kept dim"], Int[Array, "*batch kept stages"]]:
    """Keep the sums and paths of smallest error, over all candidates of all beams."""
    batch, count = error.shape[:-2], error.shape[-2] * error.shape[-1]
    _, kept = jax.lax.top_k(-error.reshape(*batch, count), min(beam_size, count))

    def keep(values: Array) -> Array:
        return jnp.take_along_axis(values.reshape(*batch, count, values.shape[-1]), kept[..., None], axis=-2)

    return keep(sums), keep(paths)
