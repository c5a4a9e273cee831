"""Compiled program of several training steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from vqjax.data import Batch
from vqjax.runtime.compilation import compiler_options
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics, Task
from vqjax.training.devices import gathered, platform_of, state_sharding

Losses = Float[Array, " steps"]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(task: Task, seed: int) -> Step:
    """Return the training step of a task, which is traced once for all programs that contain it.

    Args:
      task: The task.
      seed: Seed of the steps' keys; that of step ``t`` is ``fold_in(key(seed), t)``.

    Returns:
      A function of state and batch that returns the state after the step, without the sums of the log, and metrics.
    """
    traced = jax.jit(task.train_step, inline=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Without the sums, whose names are known only after the first trace.
        return traced(state.replace(log_sums={}), batch, jax.random.fold_in(jax.random.key(seed), state.step))

    return step


def empty_log_sums(step: Step, state: TrainState, batch: PyTree[jax.ShapeDtypeStruct]) -> Metrics:
    """Return the sums before the first step: zero for each metric of the task, for ``steps`` and for ``skipped``.

    Args:
      step: That of :func:`make_step`.
      state: Any state of the run.
      batch: Shapes of a batch.
    """
    _, metrics = jax.eval_shape(step, state, batch)
    return {name: jnp.zeros((), jnp.float32) for name in ("steps", "skipped", *metrics)}


def placed_shapes(
    task: Task, step: Step, shapes: TrainState, batch: PyTree[jax.ShapeDtypeStruct], mesh: Mesh
) -> TrainState:
    """Return shapes and places of the arrays of a run's state, with the sums of its log.

    Args:
      task: The task.
      step: That of :func:`make_step`.
      shapes: Shapes of the state before the first step.
      batch: Shapes of a batch.
      mesh: Devices of the run.
    """

    def placed(shapes: PyTree, sharding: PyTree) -> PyTree:
        return jax.tree.map(lambda shape, place: shape.update(sharding=place), shapes, sharding)

    # On the mesh like those of the program, for which the step is then not traced again.
    shapes = placed(shapes, state_sharding(shapes, mesh, task))
    batch = jax.tree.map(lambda spec: spec.update(sharding=shapes.step.sharding), batch)
    shapes = shapes.replace(log_sums=jax.eval_shape(lambda: empty_log_sums(step, shapes, batch)))
    return placed(shapes, state_sharding(shapes, mesh, task))


def make_dispatch(
    step: Step,
    select: Callable[[PyTree, Int[Array, ""] | int], Batch],
    *,
    steps_per_dispatch: int,
    sharding: TrainState,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, PyTree, PyTree, Int[np.ndarray, ""]], tuple[TrainState, Losses]]:
    """Compile the program that takes up to ``steps_per_dispatch`` steps without returning to the host.

    The number of steps is an argument of one compiled loop rather than the length of a ``scan``: a different length
    would be a different program, and a run that was cut elsewhere would not repeat bit for bit.

    Args:
      step: That of :func:`make_step`.
      select: Picks the batch of the i-th staged step.
      steps_per_dispatch: Maximum number of steps per call; 1 compiles no loop at all. XLA runs gradients of
        convolutions inside of a loop tens of times slower on CPUs (docs/performance.md).
      sharding: Sharding of each array of the state without its frozen networks.
      skip_nonfinite: Leave the state as it was, and count the step as skipped, if loss or gradient are not finite.

    Returns:
      A function of the state without its frozen networks (donated), these networks, the staged data and the number of
      steps, that returns the state after them and their losses, NaN if loss or gradient are not finite.
    """

    def take_step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        before = state
        # Devices that share parameters put them together here, and take their parts of gradients and updates below:
        # without a word about it, XLA would divide activations instead.
        params = jax.lax.with_sharding_constraint(before.params, gathered(sharding.params))
        state, metrics = step(before.replace(frozen=frozen, params=params), batch)
        state = state.replace(frozen={}, log_sums=before.log_sums)
        usable = is_usable(metrics)
        counted = metrics | {"steps": jnp.ones((), jnp.float32), "skipped": jnp.zeros((), jnp.float32)}
        if skip_nonfinite:
            # Only the number of the step goes on, and with it the data and all randomness.
            state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), state, before.replace(step=state.step))
            counted = jax.tree.map(lambda value: jnp.where(usable, value, 0), counted) | {"skipped": 1.0 - usable}
        sums = {name: total + counted[name] for name, total in before.log_sums.items()}
        state = jax.lax.with_sharding_constraint(state.replace(log_sums=sums), sharding)
        return state, jnp.where(usable, metrics["loss"], jnp.nan)

    def take_steps(
        state: TrainState, frozen: PyTree, staged: PyTree, count: Int[Array, ""]
    ) -> tuple[TrainState, Losses]:
        if steps_per_dispatch == 1:
            state, loss = take_step(state, frozen, select(staged, 0))
            return state, loss[None]

        def body(i: Int[Array, ""], carry: tuple[TrainState, Losses]) -> tuple[TrainState, Losses]:
            state, loss = take_step(carry[0], frozen, select(staged, i))
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(steps_per_dispatch, jnp.float32)))

    return jax.jit(
        take_steps,
        donate_argnames="state",
        # Losses are numbers like the number of steps: whole on every device.
        out_shardings=(sharding, sharding.step),
        compiler_options=compiler_options(platform_of(sharding.step.mesh)),
    )


def is_usable(metrics: Metrics) -> Bool[Array, ""]:
    """Return whether the loss of a step and all norms of gradients are finite.

    A gradient that overflows spoils the parameters although the step's own loss is still finite.
    """
    names = [name for name in metrics if name == "loss" or name.endswith("gradient_norm")]
    return jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in names])))
