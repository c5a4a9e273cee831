"""Steps whose loss or gradient is not finite: detection, messages, and the end of the run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.processes import is_main_process

NONFINITE_FILE = "nonfinite_step.json"
MOST_IN_A_ROW = 100
"""Number of steps that may be skipped in a row before the run ends."""

_NAMED_IMAGES = 8
_SMALLER_STEPS = "lower config.optimizer.learning_rate or set config.optimizer.clip_norm=1.0 in another --workdir"

Losses = Sequence[tuple[int, Float[Array | np.ndarray, " steps"]]]
"""First step, from 0, and losses of each dispatch; NaN if a step failed."""


class NonfiniteGuard:
    """Reports steps that failed, or ends the run at the first one.

    Args:
      skip: Whether such steps are skipped by the compiled program; otherwise the first one ends the run.
      images_of: Indices of the training images of a step, from 0.
      workdir: Directory of the run, where ``nonfinite_step.json`` goes.

    Example:
      >>> guard = NonfiniteGuard(True, lambda step: np.array([3, 1]), Path("unused"))
      >>> guard.check([(7, np.array([0.5, np.nan]))], last_checkpoint=None, say=print)
      step 9 skipped: its loss or gradient is not finite (images number 3, 1)
    """

    def __init__(self, skip: bool, images_of: Callable[[int], Int[np.ndarray, " batch"]], workdir: Path) -> None:
        self.skip = skip
        self._images_of, self._workdir = images_of, workdir
        self._skipped_in_a_row = 0

    def check(self, losses: Losses, last_checkpoint: Path | None, say: Callable[[str], None]) -> None:
        """Wait for losses, and act on those that are not finite.

        Args:
          losses: Losses since the last check.
          last_checkpoint: Newest checkpoint, if any.
          say: Prints a line.

        Raises:
          FloatingPointError: A step failed and is not skipped.
        """
        values = jax.device_get([of_dispatch for _, of_dispatch in losses])
        for (first_step, _), of_dispatch in zip(losses, values, strict=True):
            for step in first_step + np.flatnonzero(~np.isfinite(of_dispatch)):
                if not self.skip:
                    raise self._error(int(step), last_checkpoint)
                images = _first(self._images_of(int(step)))
                say(f"step {step + 1} skipped: its loss or gradient is not finite (images number {images})")

    def count(self, step: int, usable: int, skipped: int, last_checkpoint: Path | None) -> None:
        """Count the steps of a log line, and end a run that does nothing but skip.

        Args:
          step: Number of steps taken so far.
          usable: Steps of the log line that were not skipped.
          skipped: Those that were.
          last_checkpoint: Newest checkpoint, if any.

        Raises:
          FloatingPointError: The last ``MOST_IN_A_ROW`` steps were all skipped.
        """
        self._skipped_in_a_row = 0 if usable else self._skipped_in_a_row + skipped
        if self._skipped_in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"not one of the last {self._skipped_in_a_row} steps before step {step + 1} had a finite loss and "
                f"gradient; {_intact(last_checkpoint)}. {_SMALLER_STEPS.capitalize()}."
            )

    def _error(self, step: int, last_checkpoint: Path | None) -> FloatingPointError:
        images, path = self._images_of(step), self._workdir / NONFINITE_FILE
        facts = {
            "step": step + 1,
            "images": images.tolist(),
            "last_checkpoint": None if last_checkpoint is None else str(last_checkpoint),
        }
        if is_main_process():
            with atomic_file(path) as file:
                file.write(strict_json(facts).encode())
        return FloatingPointError(
            f"the loss or its gradient is not finite at step {step + 1}, whose images are number {_first(images)} of "
            f"the training split (all in {path}); {_intact(last_checkpoint)}. Set config.nonfinite=skip to go on "
            f"without such steps, or {_SMALLER_STEPS}."
        )


def _first(images: Int[np.ndarray, " batch"]) -> str:
    return ", ".join(map(str, images[:_NAMED_IMAGES])) + (", ..." if len(images) > _NAMED_IMAGES else "")


def _intact(last_checkpoint: Path | None) -> str:
    return "there is no checkpoint yet" if last_checkpoint is None else f"the last checkpoint is {last_checkpoint}"
