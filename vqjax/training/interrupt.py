"""Ends a run in good order when the system or the user asks for it."""

import signal
from types import FrameType


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
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, self._previous[number])
