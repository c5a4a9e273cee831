"""What a run tells on standard error: once, however many processes it has."""

import io
import sys

import jax
from ml_collections import ConfigDict

from vqjax.reporting import Progress
from vqjax.runtime.processes import is_distributed, is_main_process


def say(text: str) -> None:
    """Prints a line, in the first process."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def progress_line(config: ConfigDict, step: int) -> Progress:
    """The progress line of a run that starts at a step; the other processes' lines go nowhere."""
    stream = None if is_main_process() else io.StringIO()
    return Progress(config.num_steps, step, config.batch_size, stream=stream)


def describe_devices(devices: list[jax.Device] | None) -> str:
    """How many devices of which kind, in how many processes; all by default."""
    devices = devices or jax.devices()
    several = f" in {jax.process_count()} processes" if is_distributed() else ""
    return f"{len(devices)} x {devices[0].device_kind}{several}"
