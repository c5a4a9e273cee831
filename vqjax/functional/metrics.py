"""Metrics of a quantized batch: code usage, and geometry of latents and codes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqjax.functional.geometry import norm_ratio
from vqjax.functional.norms import length_and_direction
from vqjax.functional.sharding import with_automatic_axes

# With more codes their counts (4 MiB) would be larger than the sorted indices of a usual batch.
_MAX_HISTOGRAM = 2**20


def perplexity(counts: Float[Array, " codes"]) -> Float[Array, ""]:
    r"""Compute the effective number of codes in use.

    .. math:: \exp\big(-\sum_k p_k \log p_k\big),\quad p_k = n_k / \sum_j n_j

    Args:
      counts: Tokens per code.

    Returns:
      A scalar in ``[1, codes]``; one if there are no tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(perplexity(jnp.array([5.0, 5.0, 0.0]))), 4)
      2.0
    """
    total = jnp.sum(counts)
    share = counts / jnp.where(total > 0, total, 1.0)
    # An unused code adds zero, not zero times the logarithm of zero.
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0))))


def exact_perplexity(counts: Int[np.ndarray, " num_codes"]) -> float:
    """Compute :func:`perplexity` of integer counts in double precision, with NumPy.

    Args:
      counts: Tokens per code; at least one is above zero.

    Returns:
      A number in ``[1, num_codes]``.

    Example:
      >>> exact_perplexity(np.array([5, 5, 0, 0]))
      2.0
    """
    used = counts[counts > 0]
    shares = used / used.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def usage(counts: Float[Array, " codes"]) -> Float[Array, ""]:
    """Compute the share of codes that received at least one token.

    Args:
      counts: Tokens per code.

    Returns:
      A scalar in ``[0, 1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> float(usage(jnp.array([5.0, 0.0, 1.0, 0.0])))
      0.5
    """
    return jnp.mean(counts > 0, dtype=jnp.float32)


@with_automatic_axes()
def index_statistics(
    indices: Int[Array, "*batch"],
    num_codes: int,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Compute :func:`perplexity` and :func:`usage` of indices, for any number of codes.

    Codes whose counts would not fit in memory are counted by sorting the indices.

    Args:
      indices: Indices in ``[0, num_codes)``; others, such as -1, do not count.
      num_codes: Number of codes.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split.

    Returns:
      ``perplexity`` and ``usage`` over the global batch.

    Example:
      >>> import jax.numpy as jnp
      >>> statistics = index_statistics(jnp.array([7, 7, 2**30, 2**30]), 2**31 - 1)
      >>> round(float(statistics["perplexity"]), 4)
      2.0
    """
    indices = indices.reshape(-1)
    valid = (indices >= 0) & (indices < num_codes)
    if mask is not None:
        valid &= mask.reshape(-1)
    if num_codes <= _MAX_HISTOGRAM:
        # As integers: sums of ones in float32 end at 2 ** 24.
        counts = jnp.zeros(num_codes, jnp.int32).at[jnp.where(valid, indices, 0)].add(valid.astype(jnp.int32))
        counts = counts.astype(jnp.float32)
        counts = counts if axis_name is None else jax.lax.psum(counts, axis_name)
        return {"perplexity": perplexity(counts), "usage": usage(counts)}
    indices = jnp.where(valid, indices, -1)
    if axis_name is not None:
        indices = jax.lax.all_gather(indices, axis_name, tiled=True, to="invarying")
    ordered = jnp.sort(indices)
    first = (ordered >= 0) & (ordered != jnp.concatenate([jnp.full_like(ordered[:1], -1), ordered[:-1]]))
    # Masked tokens come first in the order, before any run; they add nothing to the first one.
    run = jnp.maximum(jnp.cumsum(first, dtype=jnp.int32) - 1, 0)
    counts = jnp.zeros(ordered.shape[0], jnp.int32).at[run].add((ordered >= 0).astype(jnp.int32))
    return {
        "perplexity": perplexity(counts.astype(jnp.float32)),
        "usage": jnp.sum(first, dtype=jnp.float32) / num_codes,
    }


def masked_mean(
    values: Float[Array, "*batch"], mask: Bool[Array, "*batch"] | None, axis_name: str | None = None
) -> Float[Array, ""]:
    """Compute the mean over unmasked tokens; zero if there are none.

    Args:
      values: One value per token.
      mask: True for the tokens that count; None for all.
      axis_name: Mapped axis over which the batch is split. The mean of the results over that axis is then the mean
        over all tokens, also if the parts hold different numbers of unmasked tokens.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False])))
      2.0
    """
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    total = jnp.sum(jnp.where(mask, values, 0.0))
    count = jnp.sum(mask, dtype=jnp.float32)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)


def geometry_statistics(
    z: Float[Array, "*batch dim"],
    q: Float[Array, "*batch dim"],
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Compare codes with their latents in size and angle.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.
      mask: True for the tokens that count; all by default.
      axis_name: See :func:`masked_mean`.

    Returns:
      ``norm_ratio``, the mean of :math:`|q|/|z|` (the factor by which the rotation trick scales gradients);
      ``angle``, the mean angle between the two in radians, in ``[0, pi]``; ``rms_latents`` and ``rms_codes``, the root
      mean squares of their features.

    Example:
      >>> import jax.numpy as jnp
      >>> statistics = geometry_statistics(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]]))
      >>> {name: round(float(value), 3) for name, value in statistics.items()}
      {'norm_ratio': 0.5, 'angle': 1.571, 'rms_latents': 1.414, 'rms_codes': 0.707}
    """
    z, q = jax.lax.stop_gradient((z, q))
    _, z_direction = length_and_direction(z)
    _, q_direction = length_and_direction(q)
    # The arc cosine of an inner product loses half of the digits at small angles; this form loses none.
    difference, _ = length_and_direction(z_direction - q_direction)
    total, _ = length_and_direction(z_direction + q_direction)
    angle = 2 * jnp.arctan2(difference, total)

    def root_mean_square(x: Float[Array, "*batch dim"]) -> Float[Array, ""]:
        square = masked_mean(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1), mask, axis_name)
        # The mean over devices of the root is then the root of the global batch.
        return jnp.sqrt(square if axis_name is None else jax.lax.pmean(square, axis_name))

    return {
        "norm_ratio": masked_mean(norm_ratio(z, q)[..., 0], mask, axis_name),
        "angle": masked_mean(angle[..., 0], mask, axis_name),
        "rms_latents": root_mean_square(z),
        "rms_codes": root_mean_square(q),
    }
