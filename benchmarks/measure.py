"""Timing by turns, and the machine behind a number."""

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from vqjax.data import Batch
from vqjax.reporting import markdown_table
from vqjax.runtime.compilation import compiler_options
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "vector-quantize-pytorch", "dm-haiku")
_MOST_REPETITIONS = 100


class Timing(NamedTuple):
    """Seconds per call.

    Attributes:
      median: Over all repetitions.
      quarter: A quarter of the repetitions took less.
      three_quarters: A quarter took more.
      repetitions: Number of timed calls.
    """

    median: float
    quarter: float
    three_quarters: float
    repetitions: int


def by_turns(
    contenders: Mapping[str, Callable[[], object]], seconds: float = 6.0, fewest: int = 5
) -> dict[str, Timing]:
    """Time functions in turns, so that other work on the machine affects all of them alike.

    Args:
      contenders: Functions that return when their work is done; each is called once before, which compiles it.
      seconds: Time to spend on all of them.
      fewest: Repetitions even where they take longer.

    Returns:
      Timings by name.
    """
    for work in contenders.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for repetition in range(_MOST_REPETITIONS):
        if repetition >= fewest and time.perf_counter() > end:
            break
        for name, work in contenders.items():
            # Not timed: threads of the library before may still be spinning, and its data fill the caches.
            work()
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    return {name: _timing(times) for name, times in taken.items()}


def _timing(times: Sequence[float]) -> Timing:
    quarter, median, three_quarters = statistics.quantiles(times, n=4)
    return Timing(median, quarter, three_quarters, len(times))


def peak_mib(work: Callable[[], object]) -> float:
    """Return the most MiB that this process holds while a function runs; on Linux.

    Args:
      work: The function.
    """
    # What compiling took is given back, and the record starts again at what is in use.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def compiled_step(task: Task, batch: Batch, **options: Any) -> tuple[Callable[[], None], Compiled]:
    """A training step on a batch that is on the device already.

    Args:
      task: The task.
      batch: The batch.
      **options: Options of XLA, beside those of the trainer.

    Returns:
      A function that returns when the step is done, and the compiled step.
    """
    batch = jax.device_put(batch)
    state = task.init(jax.random.key(0), batch)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        return task.train_step(state, batch, jax.random.fold_in(jax.random.key(0), state.step))

    options = compiler_options(jax.default_backend()) | options
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile(compiler_options=options)
    held = [state]

    def run() -> None:
        held[0], _ = jax.block_until_ready(compiled(held[0], batch))

    return run, compiled


def machine() -> dict[str, Any]:
    """The device and the versions, without the name of the host."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": platform.processor() or platform.machine(),
        # Fewer page faults in the memory that every step allocates (docs/performance.md).
        "huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    platform: str | None = None,
    by: str | None = None,
) -> None:
    """Print a table, and write ``benchmarks/results/NAME-PLATFORM.json``, or ``NAME-PLATFORM-huge_pages.json``.

    Args:
      name: Of the benchmark.
      rows: Numbers and text by name; the file holds all of them.
      columns: What the table shows.
      platform: What the rows are about, if not the platform of this process.
      by: Column of what can be measured alone: rows of the file with other values in it are kept, with the machine that
        they are from.
    """
    where = machine()
    path = results_file(name, platform or f"{where['platform']}{'-huge_pages' if where['huge_pages'] else ''}")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[Mapping[str, Any]] = []
    if by is not None and path.exists():
        before, measured = json.loads(path.read_text()), {row[by] for row in rows}
        from_there = {} if before["machine"] == where else {"machine": before["machine"]}
        kept = [from_there | row for row in before["rows"] if row[by] not in measured]
    record = {"benchmark": name, "machine": where, "rows": [*kept, *rows]}
    with atomic_file(path) as file:
        file.write(strict_json(record, indent=1).encode() + b"\n")
    print(markdown_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows]))
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def results_file(name: str, platform: str) -> Path:
    """Return where the results of a benchmark are.

    Args:
      name: Of the benchmark.
      platform: What it was measured on.
    """
    return RESULTS / f"{name}-{platform}.json"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
