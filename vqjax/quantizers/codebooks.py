"""What ``train=True`` does to the variables of a ``VectorQuantizer`` after the lookup."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.codebook import (
    Assignment,
    Codebook,
    assign,
    dead_codes,
    ema_update,
    init_codebook,
    replace_codes,
    unused_codes,
    update_idle,
    update_relative_usage,
)
from vqjax.functional.kmeans import kmeans
from vqjax.functional.norms import normalize
from vqjax.quantizers.base import create_projections, flatten, mapped_axis
from vqjax.quantizers.transforms import takes_condition


@dataclasses.dataclass(frozen=True)
class EMA:
    """Settings of ``codebook_update="ema"`` beyond its decay: pass an instance instead of the name.

    Attributes:
      smoothing: Laplace smoothing of the counts. With 0, a code without tokens keeps its value; above 0, every code
        is rewritten in every batch, and codes that are never used drift to the origin (van den Oord et al., 2017,
        as in vector-quantize-pytorch with 1e-5).
      start: Counts and sums before the first batch. ``"empty"``: zeros, so that a code's first batch moves it all
        the way to the mean of its tokens. ``"one_token"``: as if each code had received itself once
        (vector-quantize-pytorch). ``"sums_only"``: sums without counts (the official rotation-trick code).
      accumulation_steps: Training calls whose counts and sums are collected before the codes move once, by their
        total: the partner of ``optax.MultiSteps(every_k_schedule=...)``.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook_update=EMA(accumulation_steps=4))
    """

    smoothing: float = 0.0
    start: Literal["empty", "one_token", "sums_only"] = "empty"
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        smoothing, steps = self.smoothing, self.accumulation_steps
        if not isinstance(smoothing, numbers.Real) or isinstance(smoothing, bool) or not 0 <= smoothing < math.inf:
            raise UserError(f"smoothing={smoothing!r} is not allowed: use 0, or a small number such as 1e-5.")
        if self.start not in ("empty", "one_token", "sums_only"):
            raise UserError(f"start={self.start!r} is not allowed: use 'empty', 'one_token' or 'sums_only'.")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"accumulation_steps={steps!r} is not allowed: use a whole number of at least 1.")


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
    still_dead = jnp.sum(dead_codes(state.codebook.relative_usage, rule.dead_code_threshold), dtype=jnp.float32)
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
    codebook = codebook._replace(
        relative_usage=update_relative_usage(codebook.relative_usage, batch.counts, decay=rule.decay)
    )
    idle = None if state.idle is None else update_idle(state.idle, batch.counts)
    dead = dead_codes(codebook.relative_usage, rule.dead_code_threshold)
    if candidates is not None:
        replaced = dead if rule.replace_dead_codes else jnp.zeros_like(dead)
        if idle is not None:
            replaced |= unused_codes(idle, rule.replace_unused_after)
            idle = jnp.where(replaced, 0, idle)
        if weights is not None:
            replaced &= weights > 0
        codebook = replace_codes(candidates.key, codebook, replaced, candidates.tokens, candidates.mask)
    return state._replace(codebook=codebook, idle=idle), jnp.sum(dead, dtype=jnp.float32)


def ema_settings(vq: nn.Module) -> EMA | None:
    """The settings of the moving averages; None where the codes are not moving averages."""
    if isinstance(vq.codebook_update, EMA):
        return vq.codebook_update
    return EMA() if vq.codebook_update == "ema" else None


def per_codebook(vq: nn.Module, function: Callable) -> Callable:
    """Maps a function of one codebook over the codebooks of the heads, where each head has its own."""
    return jax.vmap(function) if vq.separate_codebooks else function


def create_variables(vq: nn.Module, features: int) -> None:
    """Creates projection and codebook, in ``init`` or where the codebook is missing.

    Args:
      vq: A ``VectorQuantizer`` inside its compact method.
      features: Of the input.
    """
    if vq.code_dim is not None:
        create_projections(vq, features, vq.heads * vq.code_dim)
    shape = (vq.num_codes, code_features(vq, features))
    heads = (vq.heads,) if vq.separate_codebooks else ()

    def initial_codes(key: Array) -> Float[Array, "*heads codes dim"]:
        if not heads:
            return vq.codebook_init(key, shape, jnp.float32)
        return jax.vmap(lambda key: vq.codebook_init(key, shape, jnp.float32))(jax.random.split(key, vq.heads))

    if vq.codebook_update == "gradient":
        vq.param("codes", initial_codes)
        vq.variable("codebook", "offsets", jnp.zeros, (*heads, *shape), jnp.float32)
        vq.variable("codebook", "relative_usage", jnp.ones, (*heads, vq.num_codes), jnp.float32)
    elif not vq.has_variable("codebook", "codes"):
        codes = initial_codes(vq.make_rng("quantizer"))
        start = getattr(ema_settings(vq), "start", "empty")
        fresh = per_codebook(vq, partial(init_codebook, start=start))(
            normalize(codes) if vq.metric == "cosine" else codes
        )
        for name in ["codes"] if vq.codebook_update == "none" else fresh._fields:
            vq.variable("codebook", name, getattr(fresh, name).copy)
    if vq.replace_unused_after is not None:
        vq.variable("codebook", "idle", jnp.zeros, (*heads, vq.num_codes), jnp.int32)
    if ema_settings(vq) is not None and ema_settings(vq).accumulation_steps > 1:
        vq.variable("codebook", "pending_counts", jnp.zeros, (*heads, vq.num_codes), jnp.float32)
        vq.variable("codebook", "pending_sums", jnp.zeros, (*heads, *shape), jnp.float32)
        vq.variable("codebook", "pending_batches", jnp.zeros, heads, jnp.int32)


def code_features(vq: nn.Module, features: int) -> int:
    """The dimension of a code for an input of so many features."""
    if vq.code_dim is not None:
        return vq.code_dim
    if features % vq.heads:
        raise UserError(f"heads={vq.heads} is not allowed: z has {features} features. Use a divisor, or set code_dim.")
    return features // vq.heads


def check_features(vq: nn.Module, features: int) -> None:
    """Refuses an input that the stored codebook was not made for."""
    stored = stored_codes(vq).shape
    expected = (vq.num_codes, code_features(vq, features))
    expected = (vq.heads, *expected) if vq.separate_codebooks else expected
    kernel = vq.get_variable("params", "project_in_kernel") if vq.code_dim is not None else None
    if stored != expected or (kernel is not None and kernel.shape[0] != features):
        made_for = kernel.shape[0] if kernel is not None else stored[-1] * vq.heads
        raise UserError(
            f"z has {features} features and num_codes={vq.num_codes}, but the codebook in the variables has shape "
            f"{stored}: pass z of {made_for} features, or initialize anew."
        )


def stored_codes(vq: nn.Module) -> Float[Array, "*heads codes dim"]:
    """The codes before any transform and normalization."""
    missing = [name for collection, name in _needed(vq) if not vq.has_variable(collection, name)]
    if missing:
        what = "codebook" if {"codes", "offsets"} & {*missing} else " and no ".join(missing)
        raise UserError(
            f"The variables hold no {what}: create them with "
            "init(key, z) of a quantizer with these settings, and pass all collections on to apply, not params alone."
        )
    if vq.codebook_update == "gradient":
        codes = vq.get_variable("params", "codes") + vq.get_variable("codebook", "offsets")
    else:
        codes = vq.get_variable("codebook", "codes")
    expected = (vq.heads, vq.num_codes) if vq.separate_codebooks else (vq.num_codes,)
    if codes.shape[:-1] != expected:
        raise UserError(
            f"num_codes={vq.num_codes} with {'a codebook per head' if vq.separate_codebooks else 'one codebook'}, but "
            f"the codebook in the variables has shape {codes.shape}: use the settings it was made with, or initialize "
            "anew."
        )
    return codes


def _needed(vq: nn.Module) -> list[tuple[str, str]]:
    """Collections and names of the variables that the settings ask for."""
    if ema_settings(vq) is not None:
        needed = [("codebook", name) for name in Codebook._fields]
        if ema_settings(vq).accumulation_steps > 1:
            needed.append(("codebook", "pending_counts"))
    elif vq.codebook_update == "gradient":
        needed = [("params", "codes"), ("codebook", "offsets"), ("codebook", "relative_usage")]
    else:
        needed = [("codebook", "codes")]
    return needed if vq.replace_unused_after is None else [*needed, ("codebook", "idle")]


Condition = Float[Array, "*batch features"] | None


def codes_of(vq: nn.Module, condition: Condition = None) -> Float[Array, "*codebooks codes dim"]:
    """Returns all codes.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      condition: One vector per token, where the transform takes one.

    Returns:
      One codebook; one per head, or one per token, along leading axes where there are such.
    """
    codes = stored_codes(vq)
    if vq.codebook_transform is not None:
        _check_condition(vq.codebook_transform, condition)
        codes = vq.codebook_transform(codes) if condition is None else vq.codebook_transform(codes, condition)
    elif condition is not None:
        raise UserError("condition is given, but there is no codebook_transform that takes one. Leave it out.")
    # Moving averages and frozen codes are stored at unit length.
    may_be_longer = vq.codebook_update == "gradient" or vq.codebook_transform is not None
    return normalize(codes) if vq.metric == "cosine" and may_be_longer else codes


def codes_at(
    vq: nn.Module, indices: Int[Array, "*indices"], condition: Condition = None
) -> Float[Array, "*indices dim"]:
    """Returns the codes of indices.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      indices: In ``[0, num_codes)``; with several heads they are the last axis.
      condition: One vector per token, where the transform takes one.

    Returns:
      One vector per index.
    """
    if condition is not None:
        _check_condition(vq.codebook_transform, condition)
        chosen = jnp.expand_dims(stored_codes(vq)[indices], -2)
        chosen = jnp.squeeze(vq.codebook_transform(chosen, condition), -2)
        return normalize(chosen) if vq.metric == "cosine" else chosen
    codes = codes_of(vq)
    return codes[jnp.arange(vq.heads), indices] if vq.separate_codebooks else codes[indices]


def _check_condition(transform: nn.Module | None, condition: Condition) -> None:
    if takes_condition(transform) != (condition is not None):
        needed = (
            "needs a condition: pass condition, one vector per token."
            if condition is None
            else ("takes no condition. Leave it out.")
        )
        raise UserError(f"codebook_transform={type(transform).__name__} {needed}")


def read_state(vq: nn.Module) -> State:
    """The state of the codebook, or codebooks, as :func:`vqjax.quantizers.codebooks.update_state` takes it.

    Learned codes are given as they are looked up.
    """

    def read(name: str) -> Array:
        return vq.get_variable("codebook", name)

    if vq.codebook_update == "gradient":
        # A codebook per token has no codes without a condition, and never replaces any.
        codes = stored_codes(vq) if takes_condition(vq.codebook_transform) else codes_of(vq)
        codes = jax.lax.stop_gradient(codes)
        codebook = per_codebook(vq, init_codebook)(codes)._replace(relative_usage=read("relative_usage"))
    elif vq.codebook_update == "none":
        codebook = per_codebook(vq, init_codebook)(stored_codes(vq))
    else:
        codebook = Codebook(**{name: read(name) for name in Codebook._fields})
    pending = None
    if vq.has_variable("codebook", "pending_counts"):
        batch = Assignment(counts=read("pending_counts"), sums=read("pending_sums"))
        pending = Pending(batch, read("pending_batches"))
    idle = read("idle") if vq.replace_unused_after is not None else None
    return State(codebook, idle, pending)


def write_state(vq: nn.Module, before: State, after: State) -> None:
    """Stores a state; learned codes stay where they are, and what replaced them goes into the offsets."""
    values = after.codebook._asdict()
    if vq.codebook_update == "gradient":
        moved = jnp.any(after.codebook.codes != before.codebook.codes, axis=-1, keepdims=True)
        codes, learned = after.codebook.codes, vq.get_variable("params", "codes")
        if hasattr(vq.codebook_transform, "to_base"):
            codes = vq.codebook_transform.to_base(codes)
        offsets = jnp.where(moved, codes - learned, vq.get_variable("codebook", "offsets"))
        values = {"offsets": offsets, "relative_usage": after.codebook.relative_usage}
    elif vq.codebook_update == "none":
        values = {"codes": after.codebook.codes}
    if after.idle is not None:
        values["idle"] = after.idle
    if after.pending is not None:
        batch = after.pending.batch
        values |= {"pending_counts": batch.counts, "pending_sums": batch.sums}
        values["pending_batches"] = after.pending.batches
    for name, value in values.items():
        vq.put_variable("codebook", name, jax.lax.stop_gradient(value))


Vectors = Float[Array, "*tokens dim"]
Mask = Bool[Array, "*tokens"] | None
Groups = tuple[Float[Array, "*codebooks tokens dim"], Bool[Array, "*codebooks tokens"] | None]


def learn(
    vq: nn.Module,
    vectors: Vectors,
    indices: Int[Array, "*tokens"],
    counts: Float[Array, "*codebooks codes"],
    mask: Mask,
    weights: Array | None,
) -> dict[str, Float[Array, ""]]:
    """Updates the state by one batch.

    Args:
      vq: A ``VectorQuantizer``.
      vectors: Tokens in the space of the lookup.
      indices: Their codes.
      counts: Tokens of each code, which devices then do not add up twice.
      mask: True for the tokens that count.
      weights: Weight of each code's moving averages.

    Returns:
      ``dead_codes``, the number after this batch and before any replacement; nothing for a frozen codebook.
    """
    transform, metrics = vq.codebook_transform, {}
    running = hasattr(transform, "update")
    if vq.codebook_update != "none" or running:
        require_mutable(vq, "train=True")
    tokens, token_mask = per_group(vq, jax.lax.stop_gradient(vectors), mask)
    if running:
        # Before the moving averages: tokens of the first batch would enter them as if nothing were transformed.
        transform.update(jax.lax.stop_gradient(stored_codes(vq)), tokens, token_mask, mapped_axis(vq))
    if vq.codebook_update != "none":
        # Moving averages live among the stored codes, learned codes are replaced where they are looked up.
        in_base = transform.to_base(tokens) if running and ema_settings(vq) is not None else tokens
        batch = assigned(vq, in_base, indices, token_mask)._replace(counts=counts)
        before = read_state(vq)
        after, dead = _updated(vq, before, batch, in_base, token_mask, weights)
        write_state(vq, before, after)
        metrics["dead_codes"] = jnp.sum(dead)
    return metrics


def start_from_clusters(vq: nn.Module, vectors: Vectors, mask: Mask, iterations: int, start: str) -> None:
    """Makes clusters of tokens the codes.

    Args:
      vq: A ``VectorQuantizer``.
      vectors: Tokens in the space of the lookup.
      mask: True for the tokens that take part.
      iterations: Of Lloyd's algorithm.
      start: How the first means are chosen, see :func:`vqjax.functional.kmeans.kmeans`.
    """
    tokens, token_mask = all_tokens(vq, *per_group(vq, jax.lax.stop_gradient(vectors), mask))
    settings = {"iterations": iterations, "unit_norm": vq.metric == "cosine", "start": start}

    def cluster(key: Array, tokens: Array, mask: Array | None) -> Codebook:
        return kmeans(key, tokens, vq.num_codes, mask=mask, **settings)

    clusters = per_codebook(vq, cluster)(draw_keys(vq, "kmeans_init"), tokens, token_mask)
    if vq.codebook_transform is not None and vq.codebook_update != "gradient":
        clusters = per_codebook(vq, init_codebook)(vq.codebook_transform.to_base(clusters.codes))
    before = read_state(vq)
    write_state(vq, before, before._replace(codebook=clusters))


def count_dead(vq: nn.Module) -> Float[Array, ""]:
    """The number of codes whose use is below the threshold."""
    relative_usage = vq.get_variable("codebook", "relative_usage")
    return jnp.sum(dead_codes(relative_usage.reshape(-1), vq.dead_code_threshold), dtype=jnp.float32)


def assigned(vq: nn.Module, tokens: Array, indices: Int[Array, "*tokens"], mask: Array | None) -> Assignment:
    """Counts and sums of the global batch, per codebook."""
    if vq.separate_codebooks:
        indices = jnp.moveaxis(indices, -1, 0).reshape(vq.heads, -1)
        masks = None if mask is None else 0
        batch = jax.vmap(lambda z, i, m: assign(z, i, vq.num_codes, m), in_axes=(0, 0, masks))(tokens, indices, mask)
    else:
        batch = assign(tokens, indices.reshape(-1), vq.num_codes, mask)
    axis_name = mapped_axis(vq)
    return batch if axis_name is None else jax.lax.psum(batch, axis_name)


def per_group(vq: nn.Module, vectors: Vectors, mask: Mask) -> Groups:
    """Tokens in one axis, after an axis of heads where each head has its own codebook."""
    if not vq.separate_codebooks:
        return flatten(vectors, mask)
    tokens = jnp.moveaxis(vectors, -2, 0).reshape(vq.heads, -1, vectors.shape[-1])
    return tokens, None if mask is None else jnp.moveaxis(mask, -1, 0).reshape(vq.heads, -1)


def all_tokens(vq: nn.Module, tokens: Array, mask: Array | None) -> Groups:
    """The tokens of all devices, and which of them may become codes."""
    if vq.metric == "cosine":
        # A zero token has no direction. As a code it would win every token more than 60 degrees from the others.
        directed = jnp.any(tokens != 0, axis=-1)
        mask = directed if mask is None else mask & directed
    if vq.axis_name is None:
        return tokens, mask
    axis = 1 if vq.separate_codebooks else 0
    # "invarying" tells shard_map that every device holds the same result, which it cannot infer.
    gather = lambda x: jax.lax.all_gather(x, vq.axis_name, axis=axis, tiled=True, to="invarying")  # noqa: E731
    return jax.tree.map(gather, (tokens, mask))


def rule_of(vq: nn.Module) -> Rule:
    """How a batch changes the state of this quantizer."""
    return Rule(
        ema=ema_settings(vq),
        decay=vq.decay,
        unit_norm=vq.metric == "cosine",
        dead_code_threshold=vq.dead_code_threshold,
        replace_dead_codes=vq.replace_dead_codes,
        replace_unused_after=vq.replace_unused_after,
    )


def require_mutable(vq: nn.Module, what: str) -> None:
    """Refuses to update an immutable collection."""
    if not vq.is_mutable_collection("codebook"):
        raise UserError(
            f"{what} updates the collection 'codebook', which is immutable in this apply. Write\n"
            "  out, updates = vq.apply(variables, z, train=True, mutable=['codebook'])\n"
            "  variables = variables | updates\n"
            "or pass train=False to leave the codebook as it is."
        )


def draw_keys(vq: nn.Module, what: str) -> Array:
    """A key of the stream ``quantizer``, or one per codebook."""
    if not vq.has_rng("quantizer"):
        raise UserError(f"{what} draws random tokens or numbers: pass rngs={{'quantizer': key}} to apply.")
    key = vq.make_rng("quantizer")
    return jax.random.split(key, vq.heads) if vq.separate_codebooks else key


def _updated(vq: nn.Module, state, batch: Assignment, tokens: Array, mask: Array | None, weights: Array | None):
    rule = rule_of(vq)
    candidates = None
    if rule.replaces:
        cause = "replace_dead_codes=True" if vq.replace_dead_codes else "replace_unused_after"
        tokens, mask = all_tokens(vq, jax.lax.stop_gradient(tokens), mask)
        candidates = Candidates(draw_keys(vq, cause), tokens, mask)
    if weights is not None and vq.separate_codebooks:
        weights = jnp.broadcast_to(weights, (vq.heads, vq.num_codes))
    return per_codebook(vq, lambda *arguments: update_state(rule, *arguments))(state, batch, candidates, weights)
