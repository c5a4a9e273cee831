"""Ends a run in good order when the system or the user asks for it."""

import signal
from types import FrameType

from jax.experimental import multihost_utils

from vqjax.runtime.processes import are_several


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint.

    Attributes:
      signal_number: Which signal asked.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Remembers SIGTERM or SIGINT instead of dying of it, so that the loop can save and leave.

    A second signal of the same kind acts as it would have without this. Use as a context manager, in the main
    thread.

    Of several processes it is enough that one is asked: JAX, which listens for SIGTERM itself once processes have
    joined, tells the others, and all stop at the same step.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        listens_itself = {signal.SIGTERM} if are_several() else set()
        for number in {signal.SIGTERM, signal.SIGINT} - listens_itself:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_now(self, dispatch: int) -> bool:
        """Whether to stop here, the same in all processes.

        Args:
          dispatch: Counts the calls, from 0, in every process.

        Returns:
          True after a signal; of several processes, once all of them have come to the same dispatch.
        """
        if not are_several():
            return self.signal_number is not None
        stops = multihost_utils.reached_preemption_sync_point(dispatch)
        if stops and self.signal_number is None:
            self.signal_number = signal.SIGTERM
        return stops

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, self._previous[number])
        if are_several():
            signal.raise_signal(signal.SIGTERM)
