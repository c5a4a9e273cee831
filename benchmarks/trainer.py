"""Starts the trainer as its users do, and times it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_STEP = re.compile(r"step (\d+)/(\d+)")


class Training(NamedTuple):
    """Times of one run of the trainer.

    Attributes:
      first_step: The step of the first line of progress.
      first_seconds: From the command to that line.
      last_step: The step of the last line before the run's end, whose own line follows an evaluation.
      last_seconds: From the command to that line.
      seconds: From the command to its end.
    """

    first_step: int
    first_seconds: float
    last_step: int
    last_seconds: float
    seconds: float

    @property
    def steps_per_second(self) -> float | None:
        """Steps a second between the two lines; None if they are one."""
        steps = self.last_step - self.first_step
        return steps / (self.last_seconds - self.first_seconds) if steps > 0 else None


def start(workdir: Path, *arguments: str, script: str = "train.py", **environment: str | None) -> subprocess.Popen:
    """Start the trainer; its progress can be read from ``stderr``, and None removes a variable of the environment."""
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    return subprocess.Popen(
        [sys.executable, script, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def fields(values: Mapping[str, object]) -> list[str]:
    """Arguments that set fields of the config.

    Example:
      >>> fields({"num_steps": 1, "model.width": 8})
      ['--config.num_steps=1', '--config.model.width=8']
    """
    return [f"--config.{name}={value}" for name, value in values.items()]


def train(workdir: Path, *arguments: str, echo: bool = False, **environment: str) -> Training:
    """Run the trainer to its end.

    Args:
      workdir: Directory of the run.
      *arguments: Of the command.
      echo: Print its progress.
      **environment: Variables to add.

    Returns:
      What it took.

    Raises:
      RuntimeError: It failed; the message is what it printed.
    """
    began = time.perf_counter()
    process = start(workdir, *arguments, **environment)
    lines, printed = [], []
    for line in process.stderr:
        printed.append(line)
        if echo:
            print(line, end="", file=sys.stderr, flush=True)
        if match := _STEP.match(line):
            lines.append((int(match[1]), time.perf_counter() - began, match[1] == match[2]))
    if process.wait() != 0 or not lines:
        raise RuntimeError(f"{' '.join(process.args)} ended with status {process.returncode}:\n{''.join(printed)}")
    first, *others = lines
    last = ([first] + [line for line in others if not line[2]])[-1]
    return Training(*first[:2], *last[:2], time.perf_counter() - began)
