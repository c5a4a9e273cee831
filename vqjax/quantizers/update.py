"""The state of one codebook, and its update by one batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.codebook import Assignment, Codebook, ema_update
from vqjax.quantizers.ema import EMA
from vqjax.replacement import dead_codes, least_recently_used, replace_codes, update_idle, update_usage


class Pending(NamedTuple):
    """Batches that wait to be applied.

    Attributes:
      batch: Their summed counts and sums.
      batches: How many they are.
    """

    batch: Assignment
    batches: Int[Array, ""]


class State(NamedTuple):
    """What training changes in a codebook.

    Attributes:
      codebook: Codes and their moving averages.
      idle: Batches since each code was last used, where least-recently-used replacement needs it.
      pending: What gradient accumulation has collected, where there is any.
    """

    codebook: Codebook
    idle: Int[Array, " codes"] | None = None
    pending: Pending | None = None


class Rule(NamedTuple):
    """How a batch changes the state; the fields are those of ``VectorQuantizer``.

    Attributes:
      ema: None where the codes are not moving averages.
      decay: Of all moving averages.
      unit_norm: Codes live on the unit sphere.
      dead_code_threshold: Fraction of the average use.
      replace_dead_codes: Replace codes below it.
      replace_unused_after: Replace codes after so many batches without a token.
    """

    ema: EMA | None
    decay: float
    unit_norm: bool
    dead_code_threshold: float
    replace_dead_codes: bool
    replace_unused_after: int | None

    @property
    def replaces(self) -> bool:
        """Whether any code is ever replaced, which takes a random key."""
        return self.replace_dead_codes or self.replace_unused_after is not None


class Candidates(NamedTuple):
    """Where replacement draws from.

    Attributes:
      key: Random key.
      tokens: In the space of the stored codes.
      mask: True for tokens that may become codes.
    """

    key: Key[Array, ""]
    tokens: Float[Array, "tokens dim"]
    mask: Bool[Array, " tokens"] | None


def update_state(
    rule: Rule,
    state: State,
    batch: Assignment,
    candidates: Candidates | None,
    weights: Float[Array, " codes"] | None,
) -> tuple[State, Float[Array, ""]]:
    """Moves a codebook by one batch.

    Args:
      rule: What to do.
      state: Before.
      batch: Counts and sums of the batch.
      candidates: Tokens that may replace codes; only where ``rule.replaces``.
      weights: Update weight of each code in [0, 1]; 0 freezes it.

    Returns:
      The state after, and the number of dead codes before any was replaced.
    """
    if state.pending is None:
        return _apply(rule, state, batch, candidates, weights)
    collected = Pending(jax.tree.map(jnp.add, state.pending.batch, batch), state.pending.batches + 1)
    due = collected.batches >= rule.ema.accumulation_steps
    applied, dead = _apply(rule, state, collected.batch, candidates, weights)
    applied = applied._replace(pending=jax.tree.map(jnp.zeros_like, collected))
    still_dead = jnp.sum(dead_codes(state.codebook.usage, rule.dead_code_threshold), dtype=jnp.float32)
    waiting = (state._replace(pending=collected), still_dead)
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), (applied, dead), waiting)


def _apply(
    rule: Rule,
    state: State,
    batch: Assignment,
    candidates: Candidates | None,
    weights: Float[Array, " codes"] | None,
) -> tuple[State, Float[Array, ""]]:
    codebook = state.codebook
    if rule.ema is not None:
        decay = rule.decay if weights is None else 1 - (1 - rule.decay) * weights
        codebook = ema_update(codebook, batch, decay=decay, unit_norm=rule.unit_norm, smoothing=rule.ema.smoothing)
    codebook = codebook._replace(usage=update_usage(codebook.usage, batch.counts, decay=rule.decay))
    idle = None if state.idle is None else update_idle(state.idle, batch.counts)
    dead = dead_codes(codebook.usage, rule.dead_code_threshold)
    if candidates is not None:
        replaced = dead if rule.replace_dead_codes else jnp.zeros_like(dead)
        if idle is not None:
            replaced |= least_recently_used(idle, rule.replace_unused_after)
            idle = jnp.where(replaced, 0, idle)
        if weights is not None:
            replaced &= weights > 0
        codebook = replace_codes(candidates.key, codebook, replaced, candidates.tokens, candidates.mask)
    return state._replace(codebook=codebook, idle=idle), jnp.sum(dead, dtype=jnp.float32)
