"""Output streams that survive the end of their reader."""

import errno
import os
from collections.abc import Callable
from typing import Any, TextIO

_READER_IS_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, and of a terminal


class LastingStream:
    """Text stream that discards its output once the pipe or terminal at its other end is closed.

    Args:
      stream: Stream of an open file.

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
        """Wrap ``sys.stdout`` or ``sys.stderr``, which is None if the process was started without it."""
        return cls(os.fdopen(_open_devnull(), "w") if stream is None else stream)

    def write(self, text: str) -> int:
        """Write a string, unless the reader is gone."""
        self._while_open(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the buffer, unless the reader is gone."""
        self._while_open(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _while_open(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in _READER_IS_GONE:
                raise
            # Redirect the file descriptor, so that the text still in the buffer has somewhere to go.
            devnull = _open_devnull()
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)


def _open_devnull() -> int:
    return os.open(os.devnull, os.O_WRONLY)
