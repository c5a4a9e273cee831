"""State of a codebook as a pytree: assignment, moving averages, dead-code detection and replacement.

Functions take the tokens of a whole batch. Under ``jit`` over a sharded batch their sums are global by construction,
and samples are the same rows for any number of devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.norms import MIN_LENGTH, length_and_direction
from vqjax.functional.numbers import Number, is_traced, is_zero
from vqjax.functional.sharding import with_automatic_axes

Latents = Float[Array, "tokens dim"]
Mask = Bool[Array, " tokens"]


class Codebook(NamedTuple):
    """State of a codebook that is updated by exponential moving averages; float32 throughout.

    Attributes:
      codes: Code vectors, ``[codes, dim]``.
      counts: Moving average of the number of tokens that each code receives per batch, ``[codes]``.
      sums: Moving average of the sum of their latents, ``[codes, dim]``.
      relative_usage: Moving average of each code's share of the tokens, as a multiple of the average share,
        ``[codes]``: one is average use, zero is no use.
    """

    codes: Float[Array, "codes dim"]
    counts: Float[Array, " codes"]
    sums: Float[Array, "codes dim"]
    relative_usage: Float[Array, " codes"]


class Assignment(NamedTuple):
    """Counts and sums of the latents that a batch assigns to each code.

    Attributes:
      counts: Tokens per code, ``[codes]``, float32.
      sums: Sum of the latents of each code, ``[codes, dim]``, float32.
    """

    counts: Float[Array, " codes"]
    sums: Float[Array, "codes dim"]


def init_codebook(codes: Float[Array, "codes dim"], start: str = "empty") -> Codebook:
    """Return the initial state for the given codes.

    With counts and sums of zero the moving average needs no bias correction: a code's first batch moves it to the
    mean of its latents, and its initial value only decides which latents those are.

    Args:
      codes: Initial code vectors.
      start: Initial counts and sums. ``"empty"``: zeros, as above. ``"one_token"``: counts of one and sums equal to
        the codes, as if each code had received itself (vector-quantize-pytorch). ``"sums_only"``: the same sums with
        counts of zero (the official rotation-trick code, where smoothing then throws unused codes far away).

    Returns:
      The state, in float32, with a relative usage of one.

    Raises:
      UserError: ``start`` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> init_codebook(jnp.ones((4, 2))).relative_usage.tolist()
      [1.0, 1.0, 1.0, 1.0]
    """
    codes = codes.astype(jnp.float32)
    ones = jnp.ones(codes.shape[0], jnp.float32)
    if start == "empty":
        return Codebook(codes, counts=jnp.zeros_like(ones), sums=jnp.zeros_like(codes), relative_usage=ones)
    if start not in ("one_token", "sums_only"):
        raise UserError(f"start must be 'empty', 'one_token' or 'sums_only', got {start!r}.")
    counts = ones if start == "one_token" else jnp.zeros_like(ones)
    return Codebook(codes, counts=counts, sums=codes, relative_usage=ones)


@with_automatic_axes()
def assign(z: Latents, indices: Int[Array, " tokens"], num_codes: int, mask: Mask | None = None) -> Assignment:
    """Count and sum the latents of each code.

    Args:
      z: Latents of the batch.
      indices: The code of each latent, in ``[0, num_codes)``; a latent with another index, such as -1, does not count.
      num_codes: Number of codes.
      mask: True for the tokens that count; all by default.

    Returns:
      Counts and sums per code. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.array([[1.0], [2.0], [5.0]])
      >>> assign(z, jnp.array([0, 0, 2]), 3).sums[:, 0].tolist()
      [3.0, 0.0, 5.0]
    """
    z = jax.lax.stop_gradient(z).astype(jnp.float32)
    valid = (indices >= 0) & (indices < num_codes)
    valid = valid if mask is None else valid & mask
    # A latent that does not count adds zero, whatever it and its index are.
    indices, z = jnp.where(valid, indices, 0), jnp.where(valid[:, None], z, 0.0)
    counts = jnp.zeros(num_codes, jnp.int32).at[indices].add(valid.astype(jnp.int32))
    sums = jnp.zeros((num_codes, z.shape[-1]), jnp.float32).at[indices].add(z)
    return Assignment(counts=counts.astype(jnp.float32), sums=sums)


def ema_update(
    codebook: Codebook,
    batch: Assignment,
    *,
    decay: Number | Float[Array, " codes"],
    unit_norm: bool = False,
    smoothing: Number = 0.0,
) -> Codebook:
    r"""Update counts, sums and codes by one batch.

    .. math::
      N_k \leftarrow \gamma_k N_k + (1-\gamma_k)\, n_k,\quad M_k \leftarrow \gamma_k M_k + (1-\gamma_k)\, s_k,\quad
      e_k \leftarrow M_k / N_k \ \text{where}\ n_k > 0

    A code that received no token in this batch keeps its value bit for bit (its :math:`N` and :math:`M` decay
    alike, so their ratio does not change). With smoothing every code is rewritten instead, as

    .. math:: e_k \leftarrow M_k / \tilde N_k,\quad
      \tilde N_k = \frac{N_k + \epsilon}{\sum_j N_j + K\epsilon} \sum_j N_j

    which drags codes that are used no more to the origin. A code with neither count nor sum, because no token has
    chosen it yet, keeps its value.

    Args:
      codebook: State before the batch.
      batch: Counts and sums of the batch.
      decay: :math:`\gamma`, in ``[0, 1)``, or one value per code, where 1 freezes a code.
      unit_norm: Scale the updated codes to length one (cosine codebooks).
      smoothing: :math:`\epsilon` of the Laplace smoothing; 0 for none.

    Returns:
      The state after the batch, with the same ``relative_usage``; see :func:`update_relative_usage`. A batch without
      tokens changes nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> state = init_codebook(jnp.zeros((2, 1)))
      >>> batch = Assignment(counts=jnp.array([2.0, 0.0]), sums=jnp.array([[6.0], [0.0]]))
      >>> ema_update(state, batch, decay=0.5).codes.tolist()
      [[3.0], [0.0]]

    Source: van den Oord et al., 2017 (arXiv 1711.00937), Appendix A.1.
    """
    is_scalar, has_tokens = np.ndim(decay) == 0, jnp.any(batch.counts > 0)
    decay = jnp.where(has_tokens, decay, 1.0)
    per_code = decay if is_scalar else decay[:, None]
    counts = decay * codebook.counts + (1 - decay) * batch.counts
    sums = per_code * codebook.sums + (1 - per_code) * batch.sums
    if not is_zero(smoothing):
        total = jnp.sum(counts)
        weights = (counts + smoothing) / (total + counts.shape[0] * smoothing) * total
        # Before the first token, of all codes or of one, there is nothing to divide.
        moves = (total > 0) & ((counts > 0)[:, None] | jnp.any(sums != 0, axis=1, keepdims=True))
        if is_traced(smoothing):
            moves = jnp.where(smoothing > 0, moves, (batch.counts > 0)[:, None])
    else:
        weights, moves = counts, (batch.counts > 0)[:, None]
    if not is_scalar:
        moves = moves & (per_code < 1)
    moves = moves & has_tokens
    moved = sums / jnp.where(moves, weights[:, None], 1.0)
    if unit_norm:
        # Latents that cancel each other have no mean direction: their code stays where it is.
        length, moved = length_and_direction(moved)
        moves = moves & (length >= MIN_LENGTH)
    return codebook._replace(codes=jnp.where(moves, moved, codebook.codes), counts=counts, sums=sums)


def update_relative_usage(
    relative_usage: Float[Array, " codes"], counts: Float[Array, " codes"], *, decay: Number
) -> Float[Array, " codes"]:
    """Update the moving average of each code's relative usage by one batch.

    Args:
      relative_usage: Relative usage before the batch; one is average use.
      counts: Tokens per code in this batch.
      decay: Decay of the moving average, in ``[0, 1)``.

    Returns:
      Relative usage after the batch; a batch without tokens changes nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> update_relative_usage(jnp.ones(2), jnp.array([6.0, 2.0]), decay=0.5).tolist()
      [1.25, 0.75]
    """
    total = jnp.sum(counts)
    relative = counts * relative_usage.shape[0] / jnp.maximum(total, 1.0)
    return jnp.where(total > 0, decay * relative_usage + (1 - decay) * relative, relative_usage)


def update_idle(idle: Int[Array, " codes"], counts: Float[Array, " codes"]) -> Int[Array, " codes"]:
    """Update the number of batches since each code was last used.

    Args:
      idle: Batches since the last use, before this batch.
      counts: Tokens per code in this batch.

    Returns:
      Batches since the last use, zero for codes in use; a batch without tokens changes nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> update_idle(jnp.array([4, 4]), jnp.array([0.0, 2.0])).tolist()
      [5, 0]
    """
    return jnp.where(counts > 0, 0, idle + jnp.any(counts > 0).astype(idle.dtype))


def dead_codes(relative_usage: Float[Array, " codes"], threshold: Number) -> Bool[Array, " codes"]:
    """Find the codes whose usage has fallen below a fraction of the average.

    Args:
      relative_usage: Relative usage of each code; one is average use.
      threshold: Fraction of the average, independent of batch size and number of codes.

    Returns:
      True for dead codes.

    Example:
      >>> import jax.numpy as jnp
      >>> dead_codes(jnp.array([2.0, 0.05]), 0.1).tolist()
      [False, True]
    """
    return relative_usage < threshold


def unused_codes(idle: Int[Array, " codes"], unused_after: int) -> Bool[Array, " codes"]:
    """Find the codes that no token has chosen for a number of batches.

    Args:
      idle: Batches since the last use.
      unused_after: Number of batches without a token after which a code counts as unused.

    Returns:
      True for unused codes.

    Example:
      >>> import jax.numpy as jnp
      >>> unused_codes(jnp.array([5, 0]), 5).tolist()
      [True, False]

    Source: Huh et al., ICML 2023 (least-recently-used replacement in vqtorch).
    """
    return idle >= unused_after


@with_automatic_axes()
def sample_latents(key: Key[Array, ""], z: Latents, count: int, mask: Mask | None = None) -> Float[Array, "count dim"]:
    """Draw latents without replacement, starting over once all have been drawn.

    Args:
      key: Random key. The same key draws the same rows for any number of devices.
      z: Latents to draw from.
      count: Number to draw; may exceed the number of latents.
      mask: True for the tokens that may be drawn, at least one; all by default.

    Returns:
      ``[count, dim]``, float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> drawn = sample_latents(jax.random.key(0), jnp.arange(3.0)[:, None], 6)
      >>> sorted(drawn[:, 0].tolist())
      [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    """
    tokens = z.shape[0]
    mask = jnp.ones(tokens, bool) if mask is None else mask
    # Masked tokens sort to the end, past those that the modulus below can reach.
    priority = jnp.where(mask, jax.random.uniform(key, (tokens,), jnp.float32), jnp.inf)
    order = jnp.argsort(priority)
    rows = order[jnp.arange(count, dtype=jnp.int32) % jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)]
    return jax.lax.stop_gradient(z)[rows].astype(jnp.float32)


@with_automatic_axes()
def replace_codes(
    key: Key[Array, ""],
    codebook: Codebook,
    replaced: Bool[Array, " codes"],
    z: Latents,
    mask: Mask | None = None,
) -> Codebook:
    """Replace codes by random latents of the batch, and reset their statistics.

    Count and sum are reset to zero with the code: stale ones would pull it back at its next update. Its relative
    usage is reset to one, so it takes ``log(threshold) / log(decay)`` batches without a token until the code can be
    replaced again.

    Args:
      key: Random key.
      codebook: State before the replacement.
      replaced: True for the codes to replace.
      z: Latents to draw from.
      mask: True for the tokens that may be drawn; all by default. If there are none, nothing is replaced.

    Returns:
      The state after the replacement.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> state = init_codebook(jnp.zeros((2, 1)))
      >>> state = replace_codes(jax.random.key(0), state, jnp.array([False, True]), jnp.array([[7.0]]))
      >>> state.codes.tolist()
      [[0.0], [7.0]]
    """
    if z.shape[0] == 0:
        return codebook
    if mask is not None:
        replaced = replaced & jnp.any(mask)
    fresh = init_codebook(sample_latents(key, z, codebook.codes.shape[0], mask))
    return jax.tree.map(
        lambda new, old: jnp.where(replaced[:, None] if old.ndim == 2 else replaced, new, old),
        fresh,
        codebook,
    )
