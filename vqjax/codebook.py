"""Codebook state as a pytree, and the pure functions that move it.

Every function takes the tokens of one whole batch. Under ``jit`` over a sharded batch the sums below are global by
construction, and samples are the same rows for any number of devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import UserError
from vqjax.norms import SHORTEST, length_and_direction

Tokens = Float[Array, "tokens dim"]
Mask = Bool[Array, " tokens"]


class Codebook(NamedTuple):
    """An EMA codebook. Everything is float32.

    Attributes:
      codes: The code vectors, ``[codes, dim]``.
      counts: Moving average of the number of tokens each code receives per batch, ``[codes]``. Starts at zero.
      sums: Moving average of the sum of those tokens, ``[codes, dim]``. Starts at zero.
      usage: Moving average of each code's share of the tokens, as a multiple of the average share, ``[codes]``:
        one is average use, zero is no use. Starts at one.
    """

    codes: Float[Array, "codes dim"]
    counts: Float[Array, " codes"]
    sums: Float[Array, "codes dim"]
    usage: Float[Array, " codes"]


class Assignment(NamedTuple):
    """What one batch assigns to the codes.

    Attributes:
      counts: Tokens per code, ``[codes]``, float32.
      sums: Sum of the tokens of each code, ``[codes, dim]``, float32.
    """

    counts: Float[Array, " codes"]
    sums: Float[Array, "codes dim"]


def fresh_codebook(codes: Float[Array, "codes dim"], start: str = "empty") -> Codebook:
    """A codebook that no token has touched.

    With counts and sums of zero the moving average needs no bias correction: a code's first batch moves it to the
    mean of its tokens, and its initial value only decides which tokens those are.

    Args:
      codes: Initial code vectors.
      start: ``"empty"``, as above; ``"one_token"``: counts of one and sums equal to the codes, as if each code had
        received itself (vector-quantize-pytorch); ``"sums_only"``: such sums, but counts of zero (the official
        rotation-trick code, where smoothing then throws unused codes far away).

    Returns:
      The state, in float32.

    Raises:
      UserError: ``start`` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> fresh_codebook(jnp.ones((4, 2))).usage.tolist()
      [1.0, 1.0, 1.0, 1.0]
    """
    codes = codes.astype(jnp.float32)
    ones = jnp.ones(codes.shape[0], jnp.float32)
    if start == "empty":
        return Codebook(codes, counts=jnp.zeros_like(ones), sums=jnp.zeros_like(codes), usage=ones)
    if start not in ("one_token", "sums_only"):
        raise UserError(f"start={start!r} is not allowed: use 'empty', 'one_token' or 'sums_only'.")
    return Codebook(codes, counts=ones if start == "one_token" else jnp.zeros_like(ones), sums=codes, usage=ones)


def assign(z: Tokens, indices: Int[Array, " tokens"], num_codes: int, mask: Mask | None = None) -> Assignment:
    """Counts and sums the tokens of each code.

    Args:
      z: Tokens of the batch.
      indices: The code of each token, in ``[0, num_codes)``.
      num_codes: Number of codes.
      mask: True for the tokens that take part; all by default.

    Returns:
      Counts and sums per code. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.array([[1.0], [2.0], [5.0]])
      >>> assign(z, jnp.array([0, 0, 2]), 3).sums[:, 0].tolist()
      [3.0, 0.0, 5.0]
    """
    z = jax.lax.stop_gradient(z).astype(jnp.float32)
    # Indices past the end are dropped by the scatter: no masked value is ever added, not even NaN times zero.
    target = indices if mask is None else jnp.where(mask, indices, num_codes)
    counts = jnp.zeros(num_codes, jnp.int32).at[target].add(1, mode="drop")
    sums = jnp.zeros((num_codes, z.shape[-1]), jnp.float32).at[target].add(z, mode="drop")
    return Assignment(counts=counts.astype(jnp.float32), sums=sums)


def ema_update(
    codebook: Codebook,
    batch: Assignment,
    *,
    decay: float | Float[Array, " codes"],
    unit_norm: bool = False,
    smoothing: float = 0.0,
) -> Codebook:
    r"""Moves counts, sums and codes by one batch.

    .. math::
      N_k \leftarrow \gamma_k N_k + (1-\gamma_k)\, n_k,\quad M_k \leftarrow \gamma_k M_k + (1-\gamma_k)\, s_k,\quad
      e_k \leftarrow M_k / N_k \ \text{where}\ n_k > 0

    A code that received no token in this batch keeps its value bit for bit (its :math:`N` and :math:`M` decay
    alike, so their ratio does not change). With smoothing every code is rewritten instead, as

    .. math:: e_k \leftarrow M_k / \tilde N_k,\quad
      \tilde N_k = \frac{N_k + \epsilon}{\sum_j N_j + K\epsilon} \sum_j N_j

    which drags codes that are never used to the origin.

    Args:
      codebook: State before the batch.
      batch: The batch's counts and sums.
      decay: :math:`\gamma`, in ``[0, 1)``, or one per code; 1 freezes a code.
      unit_norm: Scale the moved codes to length one (cosine codebooks).
      smoothing: :math:`\epsilon` of the Laplace smoothing; 0 for none.

    Returns:
      The state after the batch; ``usage`` is left to :func:`vqjax.replacement.update_usage`.

    Example:
      >>> import jax.numpy as jnp
      >>> state = fresh_codebook(jnp.zeros((2, 1)))
      >>> batch = Assignment(counts=jnp.array([2.0, 0.0]), sums=jnp.array([[6.0], [0.0]]))
      >>> ema_update(state, batch, decay=0.5).codes.tolist()
      [[3.0], [0.0]]

    Source: van den Oord et al., 2017 (arXiv 1711.00937), Appendix A.1.
    """
    one_for_all = np.ndim(decay) == 0
    per_code = decay if one_for_all else decay[:, None]
    counts = decay * codebook.counts + (1 - decay) * batch.counts
    sums = per_code * codebook.sums + (1 - per_code) * batch.sums
    if smoothing > 0:
        total = jnp.sum(counts)
        weights = (counts + smoothing) / (total + counts.shape[0] * smoothing) * total
        moves = jnp.broadcast_to(total > 0, counts.shape)[:, None]
    else:
        weights, moves = counts, (batch.counts > 0)[:, None]
    if not one_for_all:
        moves = moves & (per_code < 1)
    moved = sums / jnp.where(moves, weights[:, None], 1.0)
    if unit_norm:
        length, moved = length_and_direction(moved)
        moves = moves & (length >= SHORTEST)
    return codebook._replace(codes=jnp.where(moves, moved, codebook.codes), counts=counts, sums=sums)
