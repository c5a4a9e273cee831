"""Training end to end, with data, logging, evaluation and checkpoints: python -m benchmarks.epoch [CONFIG] [--steps=N]

Prints images per second of the whole command after its first step, and of its steps with data and logs alone. Beside
those of the compiled step (python -m benchmarks.train_step) they show what everything around the step costs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from benchmarks.trainer import fields, train

COLUMNS = (
    *("config", "steps", "seconds", "seconds after the first step", "images/s after the first step"),
    "images/s of the steps",
)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/cifar10.py:sonnet", help="as for train.py")
    parser.add_argument("--steps", type=int, default=1562, help="by default an epoch of CIFAR-10 in batches of 32")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    report("epoch", [measure(arguments.config, arguments.steps, arguments.batch_size)], COLUMNS)


def measure(config: str, steps: int, batch_size: int, *overrides: str) -> dict[str, Any]:
    """Time one run, from the command to its end.

    Args:
      config: As for ``train.py``.
      steps: Of the run.
      batch_size: Images a step.
      *overrides: Further arguments.

    Returns:
      A row.
    """
    with tempfile.TemporaryDirectory() as directory:
        arguments = [f"--config={config}", *fields({"num_steps": steps, "batch_size": batch_size}), *overrides]
        taken = train(Path(directory, "run"), *arguments, echo=True, XDG_CACHE_HOME=f"{directory}/cache")
    after = taken.seconds - taken.first_seconds
    return {
        "config": config,
        "steps": steps,
        "seconds": taken.seconds,
        "seconds after the first step": after,
        "images/s after the first step": (steps - taken.first_step) * batch_size / after,
        "images/s of the steps": taken.steps_per_second and taken.steps_per_second * batch_size,
    }


if __name__ == "__main__":
    main()
