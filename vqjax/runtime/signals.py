"""SIGTERM, SIGINT and SIGHUP: deferred until the run has saved."""

import signal
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from vqjax.runtime.processes import is_distributed


class Interrupted(Exception):
    """Raised when a run has saved a checkpoint after a signal.

    Attributes:
      signal_number: Number of the signal.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Defers SIGTERM, SIGINT and SIGHUP so that the loop can save before it ends.

    A second signal of the same kind has its default effect, and one that the process ignores, as ``nohup`` lets it
    ignore SIGHUP, stays ignored. Use as a context manager, in the main thread.

    Of several processes it is enough that one gets the signal: JAX, which handles SIGTERM itself once processes have
    joined, notifies the others, and all stop at the same step.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        handled_by_jax = {signal.SIGTERM} if is_distributed() else set()
        for number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} - handled_by_jax:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self, dispatch: int) -> bool:
        """Return whether to stop here; the answer is the same in all processes.

        Args:
          dispatch: Number of this call, from 0, in every process.

        Returns:
          True after a signal; with several processes, once all of them have reached the same dispatch.
        """
        if not is_distributed():
            return self.signal_number is not None
        stops = multihost_utils.reached_preemption_sync_point(dispatch)
        if stops and self.signal_number is None:
            self.signal_number = signal.SIGTERM
        return stops

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, self._previous[number])
        if is_distributed():
            signal.raise_signal(signal.SIGTERM)
