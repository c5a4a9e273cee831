"""Sampling of tokens: one after another from a causal transformer, or many at once from one that fills in masks."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.numbers import Number, is_number, is_positive, is_traced
from vqjax.quantizers.validation import require, require_choice, require_count, require_weight

Tokens = Int[Array, "batch positions *levels"]
Masked = Bool[Array, "batch positions"]
Logits = Float[Array, "*batch codes"]
# So that a whole number of tokens is not a hair less.
_ROUNDING = 1e-4

Ratio = Callable[[Float[Array, "*batch"]], Float[Array, "*batch"]]

MASK_SCHEDULES: dict[str, Ratio] = {
    "cosine": lambda progress: jnp.cos(0.5 * jnp.pi * progress),
    "arccos": lambda progress: 2 / jnp.pi * jnp.arccos(progress),
    "linear": lambda progress: 1 - progress,
    "square": lambda progress: 1 - jnp.square(progress),
}
"""Share of tokens that are masked, by the progress in [0, 1]; the same in training, where it is drawn uniformly."""


def guided(conditional: Logits, unconditional: Logits, scale: Number | Float[Array, ""]) -> Logits:
    r"""Move logits away from those without a class, :math:`u + s (c - u)`.

    Args:
      conditional: Logits with the class, :math:`c`.
      unconditional: Logits without, :math:`u`.
      scale: :math:`s`; 1 leaves them as they are with the class.

    Example:
      >>> guided(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]), 2.0).tolist()
      [2.0, 0.0]

    Source: Ho and Salimans, 2022 (arXiv 2207.12598), whose weight is :math:`s - 1`.
    """
    return unconditional + scale * (conditional - unconditional)


GuidanceSchedule = Literal["constant", "linear"]
Order = Literal["confidence", "halton", "random"]


def guidance_at(
    progress: Float[Array, ""] | float, scale: Number, schedule: GuidanceSchedule
) -> Float[Array, ""] | Number:
    r"""Return the scale of guidance at a time of sampling.

    Args:
      progress: Share of the tokens or steps before, in [0, 1).
      scale: Mean scale, :math:`s`.
      schedule: ``"constant"``, or ``"linear"`` for :math:`1 + 2 (s - 1)` times the progress, which leaves the first
        tokens varied.

    Raises:
      UserError: The scale is not finite, or there is no such schedule.

    Example:
      >>> guidance_at(0.5, 3.0, "constant"), guidance_at(0.25, 3.0, "linear")
      (3.0, 2.0)
    """
    check_guidance(scale)
    require_choice("guidance_schedule", schedule, get_args(GuidanceSchedule))
    return scale if schedule == "constant" else 1 + 2 * (scale - 1) * progress


def check_guidance(scale: Number) -> None:
    """Refuse a scale of guidance that is not finite, with which all tokens would be the first one.

    Args:
      scale: The scale.

    Raises:
      UserError: It is NaN or infinite.
    """
    require(is_number(scale, math.isfinite), "guidance", scale, "a finite number")


def with_none(classes: Int[Array, " batch"], num_classes: int) -> Int[Array, " twice"]:
    """Return classes, and behind them as many of the class that stands for none.

    Args:
      classes: Classes of images.
      num_classes: Number of classes, which is the number of that class.

    Example:
      >>> with_none(jnp.array([3, 1]), 10).tolist()
      [3, 1, 10, 10]
    """
    return jnp.concatenate([classes, jnp.full_like(classes, num_classes)])


def restricted(
    logits: Logits, *, temperature: Number = 1.0, top_k: int | None = None, top_p: Number | None = None
) -> Logits:
    """Divide logits by a temperature, and leave out the least likely codes.

    Args:
      logits: Logits of codes.
      temperature: Above 0; below 1, likely codes become likelier.
      top_k: Number of codes that are left; those as likely as the last of them stay too. None: all.
      top_p: The fewest likely codes are left whose probabilities, behind ``top_k``, add up to so much, and those as
        likely as the last of them; in (0, 1]. None: all.

    Returns:
      Logits, which are minus infinity for codes that are left out.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> [f"{p:.3f}" for p in jax.nn.softmax(restricted(logits, top_k=2))]
      ['0.625', '0.375', '0.000']
      >>> jnp.isfinite(restricted(logits, top_p=0.6)).tolist()
      [True, True, False]
    """
    require(is_positive(temperature), "temperature", temperature, "a finite number above 0")
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        require_count("top_k", top_k)
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        require(is_number(top_p, lambda p: 0 < p <= 1), "top_p", top_p, "a number in (0, 1], or None")
    # Sums of the probabilities of many codes may reach 1 too early.
    if top_p is not None and (is_traced(top_p) or top_p < 1):
        likely_first = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(likely_first, axis=-1)
        # A code stays if those before it do not reach top_p yet, but for rounding; the first always does.
        before = (jnp.cumsum(probabilities, axis=-1) - probabilities).at[..., 0].set(-1)
        stays = before < jnp.where(top_p < 1, top_p - 1e-6, jnp.inf)
        least = jnp.min(jnp.where(stays, likely_first, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample_causal(
    step: Callable[..., tuple[Float[Array, "batch codes"], Any]],
    cache: Any,
    key: Key[Array, ""],
    *,
    batch: int,
    positions: int,
    levels: int | None = None,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
) -> Tokens:
    """Draw tokens one after another, the levels of a position before the next position.

    Draw number ``i`` has the key ``fold_in(key, i)``.

    Args:
      step: Function ``(previous, position, cache) -> (logits, cache)``, such as
        :meth:`vqjax.models.transformer.CausalTransformer.step` with its variables and classes; ``previous`` are the
        codes of the draw before. With levels ``(previous, position, cache, level) -> (logits, cache)``.
      cache: Cache of images without tokens.
      key: Random key.
      batch: Number of images.
      positions: Number of positions of an image.
      levels: Number of codes at each position, such as ``levels`` of the transformer; they are the last axis of the
        tokens. None: one, and no such axis.
      temperature: See :func:`restricted`.
      top_k: See :func:`restricted`.
      top_p: See :func:`restricted`.

    Returns:
      The tokens.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> uniform = lambda previous, position, cache: (jnp.zeros((2, 8)), cache)
      >>> sample_causal(uniform, None, jax.random.key(0), batch=2, positions=4).shape
      (2, 4)
      >>> uniform = lambda previous, position, cache, level: (jnp.zeros((2, [8, 16][level])), cache)
      >>> sample_causal(uniform, None, jax.random.key(0), batch=2, positions=4, levels=2).shape
      (2, 4, 2)
    """
    if levels is not None:
        require_count("levels", levels)
    which = [()] if levels is None else [(level,) for level in range(levels)]

    def draw(
        carried: tuple[Int[Array, " batch"], Any], position: Int[Array, ""]
    ) -> tuple[tuple, Int[Array, "all_levels batch"]]:
        previous, cache = carried
        codes = []
        for number, level in enumerate(which):
            logits, cache = step(previous, position, cache, *level)
            logits = restricted(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            draw_key = jax.random.fold_in(key, position * len(which) + number)
            previous = jax.random.categorical(draw_key, logits).astype(jnp.int32)
            codes.append(previous)
        return (previous, cache), jnp.stack(codes)

    first = jnp.zeros(batch, jnp.int32)
    _, tokens = jax.lax.scan(draw, (first, cache), jnp.arange(positions))
    tokens = tokens.transpose(2, 0, 1)
    return tokens[..., 0] if levels is None else tokens


def sample_masked(
    logits_of: Callable[[Tokens, Masked, Float[Array, ""]], Logits | tuple[Logits, ...]],
    key: Key[Array, ""],
    tokens: Tokens,
    masked: Masked,
    *,
    num_steps: int,
    schedule: str = "cosine",
    order: Order = "confidence",
    grid: tuple[int, int] | None = None,
    choice_temperature: Number = 4.5,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
) -> Tokens:
    r"""Fill in masked tokens in a few steps, each of which draws all of them and keeps some.

    After step :math:`t` of :math:`T`, :math:`\lfloor n\, \gamma(t / T) \rfloor` of the :math:`n` tokens that were
    masked at the start are masked again, at least one fewer each time. With ``"confidence"`` the kept ones have the
    largest :math:`\log p + \tau (1 - t / T)\, G`, with Gumbel noise :math:`G`; :math:`p`, among all codes and not
    those alone that ``top_k`` and ``top_p`` leave, is the product over the levels of a position, which are kept
    together.

    Args:
      logits_of: Function of tokens, masks and the progress in [0, 1), such as
        :class:`vqjax.models.transformer.MaskedTransformer` with its variables and classes; it returns logits, or a
        tuple of those of each level.
      key: Random key.
      tokens: Tokens of images, with levels along a last axis if there are any, and any where they are masked.
      masked: Where they are to be drawn; all others stay, so that parts of images can be filled in.
      num_steps: Number of steps, :math:`T`.
      schedule: A key of :data:`MASK_SCHEDULES`, :math:`\gamma`.
      order: Which tokens are kept first: those that are likely, those that lie far from one another by a Halton
        sequence, or random ones.
      grid: Rows and columns of the tokens; for ``"halton"``.
      choice_temperature: :math:`\tau`, of ``"confidence"``.
      temperature: See :func:`restricted`.
      top_k: See :func:`restricted`.
      top_p: See :func:`restricted`.

    Returns:
      The tokens, none of which is masked.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> uniform = lambda tokens, masked, progress: jnp.zeros((*tokens.shape, 8))
      >>> tokens, masked = jnp.zeros((2, 6), jnp.int32), jnp.arange(6)[None] >= jnp.array([[0], [4]])
      >>> filled = sample_masked(uniform, jax.random.key(0), tokens, masked, num_steps=3)
      >>> filled[1, :4].tolist()
      [0, 0, 0, 0]

    Source: Chang et al., 2022 (arXiv 2202.04200); Besnier et al., 2025 (arXiv 2503.17076) for Halton sequences.
    """
    require_count("num_steps", num_steps)
    require_choice("schedule", schedule, MASK_SCHEDULES)
    require_choice("order", order, get_args(Order))
    require_weight("choice_temperature", choice_temperature)
    if order == "halton" and (grid is None or grid[0] * grid[1] != tokens.shape[1]):
        raise UserError(f"grid must be rows and columns of {tokens.shape[1]} tokens for order='halton', got {grid!r}.")
    ranks = jnp.asarray(np.argsort(halton_order(grid))) if order == "halton" else None
    wanted = jnp.sum(masked, axis=1)

    def fill(carried: tuple[Tokens, Masked], number: Int[Array, ""]) -> tuple[tuple[Tokens, Masked], None]:
        tokens, masked = carried
        draw_key, choice_key = jax.random.split(jax.random.fold_in(key, number))
        logits = logits_of(tokens, masked, number / num_steps)
        levels = (len(logits),) if isinstance(logits, tuple) else ()
        if tokens.shape[2:] != levels:
            raise UserError(
                f"tokens must be of shape {[*masked.shape, *levels]} for the logits of logits_of, got "
                f"{list(tokens.shape)}; a tuple of logits is for tokens with levels."
            )
        keys = jax.random.split(draw_key, levels) if levels else [draw_key]
        drawn, log_p = [], jnp.zeros(masked.shape)
        for level_key, of_level in zip(keys, logits if levels else [logits], strict=True):
            likely = restricted(of_level, temperature=temperature, top_k=top_k, top_p=top_p)
            drawn.append(jax.random.categorical(level_key, likely).astype(tokens.dtype))
            # The fewer codes are left to draw from, the less their probabilities say.
            of_all = jax.nn.log_softmax(restricted(of_level, temperature=temperature))
            of_drawn = jnp.take_along_axis(of_all, drawn[-1][..., None], axis=-1)
            log_p += of_drawn[..., 0]
        fresh = masked.reshape(*masked.shape, *(1 for _ in levels))
        tokens = jnp.where(fresh, jnp.stack(drawn, axis=-1).reshape(tokens.shape), tokens)
        done = (number + 1) / num_steps
        left = jnp.floor(wanted.astype(jnp.float32) * MASK_SCHEDULES[schedule](done) + _ROUNDING).astype(jnp.int32)
        # Each step keeps a token where one is left, and the last one keeps all.
        left = jnp.where(done < 1, jnp.clip(left, 0, jnp.maximum(jnp.sum(masked, axis=1) - 1, 0)), 0)
        if order == "confidence":
            merit = log_p + choice_temperature * (1 - done) * jax.random.gumbel(choice_key, masked.shape)
        elif order == "random":
            merit = jax.random.uniform(choice_key, masked.shape)
        else:
            merit = jnp.broadcast_to(-ranks.astype(jnp.float32), masked.shape)
        merit = jnp.where(masked, merit, jnp.inf)
        place = jnp.argsort(jnp.argsort(merit, axis=1), axis=1)
        return (tokens, place < left[:, None]), None

    (tokens, _), _ = jax.lax.scan(fill, (tokens, masked), jnp.arange(num_steps))
    return tokens


def halton_order(grid: tuple[int, int]) -> Int[np.ndarray, " positions"]:
    """Return the positions of a grid in the order of a Halton sequence, in which neighbors come late.

    Args:
      grid: Rows and columns.

    Returns:
      Each position once, as row times columns plus column.

    Example:
      >>> halton_order((2, 2)).tolist()
      [2, 1, 0, 3]

    Source: Besnier et al., 2025 (arXiv 2503.17076): bases 2 and 3, repeated positions left out.
    """
    rows, columns = grid
    found: dict[int, None] = {}
    number = 1
    while len(found) < rows * columns:
        row, column = int(rows * _radical_inverse(number, 2)), int(columns * _radical_inverse(number, 3))
        found.setdefault(row * columns + column)
        number += 1
    return np.fromiter(found, int)


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number behind the point, in reverse."""
    value, weight = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        weight /= base
        value += digit * weight
    return value
