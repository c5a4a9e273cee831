"""Atomic files and strict JSON."""

import hashlib
import json
import math
import numbers
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqjax.errors import UserError
from vqjax.runtime.paths import local_path


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` only once it has been written completely.

    The old content of ``path`` stays untouched until then, so an interrupted run loses nothing. Missing parent
    directories are created. If ``path`` is a symbolic link, the file that it leads to is replaced.

    Args:
      path: Path of the finished file.

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
    # Next to the file itself, as a link may lead to another mount, and nothing is renamed across mounts.
    path = Path(os.path.realpath(local_path(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # `tempfile` would make a file that only its owner can read. Processes of other hosts may have the same number; a
    # name may have the greatest length already.
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            # Without it a power cut may leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def new_file(path: str | os.PathLike[str], name: str, *, ending: str) -> Path:
    """Return the place of a file to be written, which is refused now rather than when all has been computed.

    Args:
      path: Path as the user typed it. Missing parent directories are allowed.
      name: Name of the argument in messages.
      ending: Ending of the file name, such as ``".npz"``.

    Returns:
      The path.

    Raises:
      UserError: The path has another ending, is a directory, or its directory cannot be written to.

    Example:
      >>> new_file("results/tokens.npz", "--out", ending=".npz").name
      'tokens.npz'
    """
    file = local_path(path, name)
    parent = next(p for p in file.absolute().parents if p.exists())
    message = f"{name} must be a file name that ends in {ending} in a writable directory, got {path}"
    if file.suffix != ending or file.is_dir():
        raise UserError(f"{message}.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{message} ({parent}: {error.strerror}).") from error
    return file


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the name of a file to an ``OSError`` without one, such as that of a full disk.

    Args:
      path: File that is written inside the block.

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
    """Return a value as JSON text in which NaN and infinities are ``null``.

    Args:
      value: Nested mappings, sequences, strings and numbers; arrays become lists, and any other object its ``str``.
        Keys keep their order.
      indent: Spaces per level; None writes one line.

    Returns:
      JSON text according to RFC 8259.

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


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
      path: The file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "empty"
      >>> path.touch()
      >>> file_checksum(path)[:8]
      'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
