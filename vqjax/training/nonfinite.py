"""What happens when the loss or its gradient is no finite number."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from vqjax.data import batch_indices
from vqjax.reporting import atomic_file, strict_json
from vqjax.runtime.processes import is_main_process
from vqjax.tasks.state import TrainState

NONFINITE_CHOICES = ("stop", "skip")
NONFINITE_FILE = "nonfinite_step.json"
MOST_IN_A_ROW = 100
"""Steps that may be skipped one after another before the run ends."""

_NAMED_IMAGES = 8


def unless_finite(finite: Bool[Array, ""], after: TrainState, before: TrainState) -> TrainState:
    """Takes back a step that cannot be used: only the step number goes on, and with it the images and all randomness.

    Args:
      finite: Whether the step can be used.
      after: The state after it.
      before: The state before it.

    Returns:
      One of both, with the number of the state after the step.
    """
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return chosen.replace(step=after.step)


class RecentLosses:
    """The losses since they were last looked at; they stay on the device, so that nothing waits for them.

    Example:
      >>> losses = RecentLosses()
      >>> losses.add(step=7, count=2, losses=jnp.array([0.5, jnp.nan, 0.0]))
      >>> losses.take()()
      [8]
      >>> losses.take()()
      []
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, Float[Array, " steps"]]] = []

    def add(self, step: int, count: int, losses: Float[Array, " steps"]) -> None:
        """Keeps the first ``count`` losses, of the steps from ``step`` on; NaN where a step cannot be used."""
        self._parts.append((step, count, losses))

    def take(self) -> Callable[[], list[int]]:
        """Starts again with none.

        Returns:
          A function that waits for the losses there were, and gives the steps, from 0, whose loss is not finite.
        """
        parts, self._parts = self._parts, []

        def nonfinite_steps() -> list[int]:
            values = jax.device_get([losses for _, _, losses in parts])
            return [
                step + int(place)
                for (step, count, _), losses in zip(parts, values, strict=True)
                for place in np.flatnonzero(~np.isfinite(losses[:count]))
            ]

        return nonfinite_steps


def first_images(config: ConfigDict, step: int, num_images: int) -> str:
    """The places in the training split of the first images of a step, for a message."""
    indices = batch_indices(config.seed, step, config.batch_size, num_images)
    more = ", ..." if len(indices) > _NAMED_IMAGES else ""
    return ", ".join(map(str, indices[:_NAMED_IMAGES])) + more


def nonfinite_error(
    workdir: Path, config: ConfigDict, step: int, num_images: int, last_checkpoint: Path | None
) -> FloatingPointError:
    """Names the step, its images and the checkpoint to go back to, and keeps them in ``nonfinite_step.json``.

    Args:
      workdir: The run's directory.
      config: The run's config.
      step: From 0, the first whose loss or gradient is not finite.
      num_images: In the training split.
      last_checkpoint: The newest, if any.

    Returns:
      What to raise.
    """
    facts = {
        "step": step + 1,
        "images": batch_indices(config.seed, step, config.batch_size, num_images).tolist(),
        "last_checkpoint": None if last_checkpoint is None else str(last_checkpoint),
    }
    if is_main_process():
        with atomic_file(workdir / NONFINITE_FILE) as file:
            file.write(strict_json(facts).encode())
    return FloatingPointError(
        f"the loss or its gradient is not finite at step {step + 1}, whose images are number "
        f"{first_images(config, step, num_images)} of the training split (all in {workdir / NONFINITE_FILE}); "
        f"{_intact(last_checkpoint)}. Set config.nonfinite=skip to go on without such steps, or "
        f"{_smaller_steps(config)}."
    )


def nothing_but_skipped(
    config: ConfigDict, step: int, skipped: int, last_checkpoint: Path | None
) -> FloatingPointError:
    """Says that a run which skips such steps does nothing else any more.

    Args:
      config: The run's config.
      step: How many steps have been taken.
      skipped: How many of the last were skipped.
      last_checkpoint: The newest, if any.

    Returns:
      What to raise.
    """
    return FloatingPointError(
        f"not one of the last {skipped} steps before step {step + 1} had a finite loss and gradient; "
        f"{_intact(last_checkpoint)}. {_smaller_steps(config).capitalize()}."
    )


def _intact(last_checkpoint: Path | None) -> str:
    return "there is no checkpoint yet" if last_checkpoint is None else f"the last checkpoint is {last_checkpoint}"


def _smaller_steps(config: ConfigDict) -> str:
    return (
        f"lower config.optimizer.learning_rate (={config.optimizer.learning_rate}) or set "
        "config.optimizer.clip_norm=1.0 in another --workdir"
    )
