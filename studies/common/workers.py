"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def worker_pool(workers: int, initializer: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Create a pool of processes which end when this one ends, be it by a kill.

    Args:
      workers: Number of processes.
      initializer: Is called first in each of them; a function of a module.

    Returns:
      The pool, a context manager.

    Example:
      >>> with worker_pool(1) as pool:
      ...     pool.submit(max, 2, 3).result()
      3
    """
    # A process with threads, as JAX has them, cannot be forked.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(initializer,))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, and return what it returns.

    Args:
      function: A function of a module.
      *arguments: Its arguments.
    """
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def _start(initializer: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    # Not sys.exit, which would end this thread alone.
    os._exit(1)
