"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


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


def _start(initializer: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    # Not sys.exit, which would end this thread alone.
    os._exit(1)
