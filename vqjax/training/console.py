"""Console output of a run: from the main process, on standard error."""

import io
import sys

import jax

from vqjax.reporting import Progress
from vqjax.runtime.processes import is_distributed, is_main_process


def log(text: str) -> None:
    """Print a line, in the main process."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def progress_line(num_steps: int, step: int, batch_size: int, clips: bool) -> Progress:
    """Return the progress line of a run that starts at a step; other processes discard theirs."""
    stream = None if is_main_process() else io.StringIO()
    return Progress(num_steps, step, batch_size, stream=stream, clips=clips)


def describe_devices(devices: list[jax.Device] | None) -> str:
    """Return number and kind of devices, all by default, and the number of processes if there are several."""
    devices = devices or jax.devices()
    processes = f" in {jax.process_count()} processes" if is_distributed() else ""
    return f"{len(devices)} x {devices[0].device_kind}{processes}"
