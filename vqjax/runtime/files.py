"""Files that appear whole or not at all."""

import json
import math
import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary file that takes the place of `path` only once it has been written completely.

    Whatever stood at `path` stays untouched until then, so an interrupted run loses nothing. Missing parent
    directories are made.

    Args:
      path: Where the finished file shall be.

    Yields:
      A binary file, open for writing, in the same directory.

    Example:
      >>> import tempfile
      >>> directory = Path(tempfile.mkdtemp())
      >>> with atomic_file(directory / "note.txt") as file:
      ...     _ = file.write(b"whole")
      >>> [entry.name for entry in directory.iterdir()]
      ['note.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # `open` instead of `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            # Without it a power cut may leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of a file to errors that lack it: a full disk says no more than that it is full.

    Args:
      path: The file that is written inside.

    Example:
      >>> with naming("codes.npz"):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      OSError: [Errno 28] No space left on device: 'codes.npz'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Turns a value into JSON text in which NaN and infinities are `null`, as JSON has no such numbers.

    Args:
      value: Nested mappings, sequences, strings, numbers; NumPy and JAX arrays and scalars are taken as well, and
        anything else as its `str`. Keys keep their order.
      indent: Spaces per level; None writes one line.

    Returns:
      JSON text as RFC 8259 defines it.

    Example:
      >>> strict_json({"loss": float("nan"), "dead_codes": np.int32(3)})
      '{"loss": null, "dead_codes": 3}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value).tolist())
    return str(value)
