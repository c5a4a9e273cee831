"""Output that outlives its reader: a run does not end because nobody listens any more."""

import os
from collections.abc import Callable
from typing import Any, TextIO


class LastingStream:
    """A text stream that goes on, into nothing, once the pipe or terminal at its other end is gone.

    Args:
      stream: Of an open file.

    Example:
      >>> reader, writer = os.pipe()
      >>> os.close(reader)
      >>> with os.fdopen(writer, "w") as pipe:
      ...     print("nobody reads this", file=LastingStream(pipe), flush=True)
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def of(cls, stream: TextIO | None) -> "LastingStream":
        """What to write to instead of ``sys.stdout`` or ``sys.stderr``, which is None where it was closed."""
        return cls(os.fdopen(_open_nowhere(), "w") if stream is None else stream)

    def write(self, text: str) -> int:
        """Writes a text, while somebody listens."""
        self._while_open(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what was written, while somebody listens."""
        self._while_open(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _while_open(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            # What is still in the buffer, and all that follows, goes where it fits.
            nowhere = _open_nowhere()
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _open_nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)
