"""Which codes are not in use, and tokens that take their place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.codebook import Codebook, Mask, Tokens, fresh_codebook


def update_usage(
    usage: Float[Array, " codes"], counts: Float[Array, " codes"], *, decay: float
) -> Float[Array, " codes"]:
    """Moves each code's relative use by one batch; a batch without tokens moves nothing.

    Args:
      usage: Relative use before the batch (one is average).
      counts: Tokens per code in this batch.
      decay: Of the moving average, in ``[0, 1)``.

    Returns:
      Relative use after the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> update_usage(jnp.ones(2), jnp.array([6.0, 2.0]), decay=0.5).tolist()
      [1.25, 0.75]
    """
    total = jnp.sum(counts)
    relative = counts * usage.shape[0] / jnp.maximum(total, 1.0)
    return jnp.where(total > 0, decay * usage + (1 - decay) * relative, usage)


def update_idle(idle: Int[Array, " codes"], counts: Float[Array, " codes"]) -> Int[Array, " codes"]:
    """Counts the batches since each code was last used; a batch without tokens counts for none.

    Args:
      idle: Batches before this one.
      counts: Tokens per code in this batch.

    Returns:
      Batches since the last use, zero for codes in use.

    Example:
      >>> import jax.numpy as jnp
      >>> update_idle(jnp.array([4, 4]), jnp.array([0.0, 2.0])).tolist()
      [5, 0]
    """
    return jnp.where(counts > 0, 0, idle + jnp.any(counts > 0).astype(idle.dtype))


def least_recently_used(idle: Int[Array, " codes"], batches: int) -> Bool[Array, " codes"]:
    """Marks the codes that no token has chosen for so many batches.

    Args:
      idle: Batches since the last use.
      batches: How many are too many.

    Returns:
      True for codes to replace.

    Example:
      >>> import jax.numpy as jnp
      >>> least_recently_used(jnp.array([5, 0]), 5).tolist()
      [True, False]

    Source: Huh et al., ICML 2023 (replacement in vqtorch).
    """
    return idle >= batches


def sample_tokens(key: Key[Array, ""], z: Tokens, count: int, mask: Mask | None = None) -> Float[Array, "count dim"]:
    """Draws tokens without replacement; once all have been drawn, from the beginning again.

    Args:
      key: Random key. The same key draws the same rows for any number of devices.
      z: Tokens to draw from.
      count: How many to draw; may exceed the number of tokens.
      mask: True for the tokens that may be drawn; at least one has to be.

    Returns:
      ``[count, dim]``, float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> drawn = sample_tokens(jax.random.key(0), jnp.arange(3.0)[:, None], 6)
      >>> sorted(drawn[:, 0].tolist())
      [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    """
    tokens = z.shape[0]
    mask = jnp.ones(tokens, bool) if mask is None else mask
    priority = jnp.where(mask, jax.random.uniform(key, (tokens,)), jnp.inf)
    order = jnp.argsort(priority)
    rows = order[jnp.arange(count) % jnp.maximum(jnp.sum(mask), 1)]
    return jax.lax.stop_gradient(z)[rows].astype(jnp.float32)


def dead_codes(usage: Float[Array, " codes"], threshold: float) -> Bool[Array, " codes"]:
    """Marks the codes whose use has fallen below a fraction of the average use.

    Args:
      usage: Relative use of each code (one is average).
      threshold: Fraction of the average use; independent of batch size and number of codes.

    Returns:
      True for dead codes.

    Example:
      >>> import jax.numpy as jnp
      >>> dead_codes(jnp.array([2.0, 0.05]), 0.1).tolist()
      [False, True]
    """
    return usage < threshold


def replace_codes(
    key: Key[Array, ""],
    codebook: Codebook,
    replaced: Bool[Array, " codes"],
    z: Tokens,
    mask: Mask | None = None,
) -> Codebook:
    """Replaces codes by random tokens of the batch, and makes them as fresh as a new codebook.

    Count and sum are reset to zero with the code: stale ones would pull it back at its next update. Its use is
    reset to average, which gives it ``log(threshold) / log(decay)`` batches before it can be replaced again.

    Args:
      key: Random key.
      codebook: State before.
      replaced: Which codes to replace.
      z: Tokens to draw from.
      mask: True for the tokens that may be drawn. Where none may, nothing is replaced.

    Returns:
      The state after.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> state = fresh_codebook(jnp.zeros((2, 1)))
      >>> state = replace_codes(jax.random.key(0), state, jnp.array([False, True]), jnp.array([[7.0]]))
      >>> state.codes.tolist()
      [[0.0], [7.0]]
    """
    if z.shape[0] == 0:
        return codebook
    if mask is not None:
        replaced = replaced & jnp.any(mask)
    fresh = fresh_codebook(sample_tokens(key, z, codebook.codes.shape[0], mask))
    return jax.tree.map(
        lambda new, old: jnp.where(replaced[:, None] if old.ndim == 2 else replaced, new, old),
        fresh,
        codebook,
    )
