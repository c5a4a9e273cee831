"""Compiles the program that takes several training steps per dispatch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from vqjax.data import Batch, Feed
from vqjax.runtime.compilation import compiler_options
from vqjax.tasks.state import TrainState
from vqjax.training.nonfinite import unless_finite

Metrics = dict[str, Float[Array, ""]]


def empty_window(
    state: TrainState,
    feed: Feed,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    skip_nonfinite: bool,
) -> Metrics:
    """The window before its first step: every metric of ``step`` at zero, ``steps`` and, if any may be, ``skipped``.

    Args:
      state: Any state of the run.
      feed: Source of the batches; only their shapes matter.
      step: :func:`train_step` of state and batch.
      skip_nonfinite: See :func:`make_dispatch`.

    Returns:
      Zeros by name.
    """
    staged = feed.stage(int(state.step), 0)
    _, metrics = jax.eval_shape(lambda state, staged: step(state, feed.select(staged, 0)), state, staged)
    counts = ("steps", "skipped") if skip_nonfinite else ("steps",)
    return {name: jnp.zeros(()) for name in (*counts, *metrics)}


def make_dispatch(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    select: Callable[[PyTree, Int[Array, ""] | int], Batch],
    steps_per_dispatch: int,
    sharding: TrainState,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, PyTree, Int[np.ndarray, ""]], tuple[TrainState, Float[Array, " steps"]]]:
    """Compiles the program that takes up to ``steps_per_dispatch`` steps without returning to the host.

    The number of steps is an argument of one compiled loop rather than the length of a ``scan``: another length
    would be another program, and a run that was cut elsewhere would not repeat bit for bit.

    Args:
      step: :func:`train_step` of state and batch.
      select: Picks the batch of the i-th staged step.
      steps_per_dispatch: The most steps per call; 1 compiles no loop at all. XLA runs convolutions inside a loop
        tens of times slower on CPUs (jax-ml/jax#12868).
      sharding: Where the arrays of the state live.
      skip_nonfinite: Leave the state as it was, and count the step as skipped, where loss or gradient are not finite.

    Returns:
      A function of the state (donated), the staged data and the number of steps, that returns the state after them
      and their losses, NaN where the gradient is not finite, in an array of ``steps_per_dispatch``.
    """

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        before = state
        state, metrics = step(before, batch)
        # A gradient that overflows spoils the parameters although this step's loss is still finite.
        usable = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        counted = metrics | {"steps": jnp.ones(())}
        if skip_nonfinite:
            state = unless_finite(usable, state, before)
            counted = jax.tree.map(lambda value: jnp.where(usable, value, 0), counted) | {"skipped": 1.0 - usable}
        state = state.replace(window={name: total + counted[name] for name, total in before.window.items()})
        return state, jnp.where(usable, metrics["loss"], jnp.nan)

    def dispatch(state: TrainState, staged: PyTree, count: Int[Array, ""]) -> tuple[TrainState, Float[Array, " steps"]]:
        if steps_per_dispatch == 1:
            state, loss = one(state, select(staged, 0))
            return state, loss[None]

        def body(i: Int[Array, ""], carry: tuple[TrainState, Float[Array, " steps"]]):
            state, loss = one(carry[0], select(staged, i))
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(steps_per_dispatch)))

    # Losses are numbers like the number of steps: whole on every device.
    return jax.jit(
        dispatch,
        donate_argnames="state",
        out_shardings=(sharding, sharding.step),
        compiler_options=compiler_options(),
    )
