"""Directories and files in remote storage, of which a run works on a local copy."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import jax
from fsspec.implementations.memory import MemoryFileSystem
from tqdm import tqdm

from vqjax.errors import UserError, one_line
from vqjax.runtime.paths import is_url

# Locks, and what a killed process has not finished writing.
_UNFINISHED = re.compile(r"^\.lock$|\.partial$|orbax-checkpoint-tmp")
# Last, because it vouches for the other files of a checkpoint.
_LAST = "SHA256SUMS"

_COPIES: dict[str, tuple[Path, Callable[[], None]]] = {}
"""The copies that are open, by URL."""


def shown(path: Path) -> str:
    """Return a path as users know it: under its URL if it lies in a local copy.

    Args:
      path: Any path.

    Example:
      >>> shown(Path("runs/first"))
      'runs/first'
    """
    for url, (directory, _) in _COPIES.items():
        if path.is_relative_to(directory):
            return f"{url.rstrip('/')}/{path.relative_to(directory).as_posix()}".removesuffix("/.")
    return str(path)


@contextmanager
def local_copy(path: str | os.PathLike[str], name: str) -> Iterator[tuple[str | os.PathLike[str], Callable[[], None]]]:
    """Give a local copy of a directory in remote storage; any other path is given as it is.

    The copy is removed at the end, after its last changes have been uploaded. It is kept if that fails. Within the
    block, the same URL gives the same copy.

    Args:
      path: A path, or a URL of a storage that fsspec knows, such as ``gs://bucket/run``.
      name: Name of the argument in messages.

    Yields:
      The local directory, and a function that uploads what has changed in it since the last upload.

    Raises:
      UserError: The storage cannot be reached, or several processes would share the copy.

    Example:
      >>> with local_copy("memory://runs/first", "--workdir") as (directory, upload):
      ...     _ = (directory / "config.json").write_text("{}")
      >>> with local_copy("memory://runs/first", "--workdir") as (directory, _):
      ...     [file.name for file in directory.iterdir()]
      ['config.json']
    """
    if not is_url(path):
        yield path, lambda: None
        return
    if jax.process_count() > 1:
        raise UserError(f"{name} must be a directory that all processes share, got {os.fspath(path)!r}; mount it.")
    remote = _Remote(path, name)
    if remote.url in _COPIES:
        yield _COPIES[remote.url]
        return
    directory = Path(tempfile.mkdtemp(prefix="vqjax-"))
    try:
        remote.download(directory)
    except BaseException:
        shutil.rmtree(directory)
        raise
    print(f"{remote.url} is copied to {directory} while this process uses it", file=sys.stderr, flush=True)
    if isinstance(remote.files, MemoryFileSystem):
        print(f"warning: {remote.url} is lost when this process ends", file=sys.stderr, flush=True)
    _COPIES[remote.url] = directory, lambda: remote.upload(directory)
    try:
        yield _COPIES[remote.url]
    except UserError as error:
        raise type(error)(str(error).replace(str(directory), remote.url)) from error
    finally:
        # First, as an upload may fail.
        del _COPIES[remote.url]
        remote.upload(directory)
        shutil.rmtree(directory)


@contextmanager
def local_file(path: str | os.PathLike[str], name: str) -> Iterator[str | os.PathLike[str]]:
    """Give a local copy of a file in remote storage, and upload what is written to it; any other path as it is.

    Args:
      path: A path, or a URL; see :func:`local_copy`. The file need not exist.
      name: Name of the argument in messages.

    Yields:
      The local path. If the block fails, nothing is uploaded.

    Raises:
      UserError: The storage cannot be reached.

    Example:
      >>> with local_file("memory://exports/tokens.txt", "--export_tokens") as file:
      ...     _ = Path(file).write_text("1 2 3")
      >>> with local_file("memory://exports/tokens.txt", "--export_tokens") as file:
      ...     Path(file).read_text()
      '1 2 3'
    """
    if not is_url(path):
        yield path
        return
    remote = _Remote(path, name)
    with tempfile.TemporaryDirectory(prefix="vqjax-") as directory:
        file = Path(directory) / remote.root.rpartition("/")[2]
        before = remote.get(remote.root, file) if remote.exists else None
        yield file
        if file.exists() and _state(file) != before:
            remote.put(file, remote.root)


def check_storage(path: str | os.PathLike[str], name: str) -> None:
    """Refuse a URL whose storage cannot be reached.

    Args:
      path: A URL; see :func:`local_copy`.
      name: Name of the argument in messages.

    Raises:
      UserError: The storage cannot be reached.
    """
    _Remote(path, name)


class _Remote:
    """A directory or file in remote storage, and what is known to be in it."""

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        # pathlib makes s3:/bucket of s3://bucket.
        self.url, self.name = re.sub(r"^([\w+.:-]+):/(?!/)", r"\1://", os.fspath(path)), name
        self.known: dict[str, tuple[int, int]] = {}
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except Exception as error:
            # Protocols that are unknown, lack a package, or need more than a URL.
            raise UserError(
                f"{name} must be a path, or a URL that fsspec can open, got {self.url!r} ({one_line(error)}); install "
                "what it needs, or mount or copy that storage."
            ) from error
        with self._reaching():
            self.exists = self.files.exists(self.root)

    def download(self, directory: Path) -> None:
        """Copy everything into a local directory."""
        with self._reaching():
            if self.exists and not self.files.isdir(self.root):
                raise NotADirectoryError("it is a file")
            places = self.files.find(self.root) if self.exists else []
        names = {place: place.removeprefix(self.root).lstrip("/") for place in places}
        for name in names.values():
            if ".." in name.split("/"):
                raise UserError(f"{self.name} must hold files below {self.url!r}, got {name!r}; nothing is copied.")
        # What another process has not finished is not for this one to read, nor to remove.
        finished = {place: name for place, name in names.items() if _is_finished(name)}
        for place, name in tqdm(finished.items(), f"downloading {self.url}", unit="file", disable=None, leave=False):
            self.known[name] = self.get(place, directory / name)

    def upload(self, directory: Path) -> None:
        """Copy what has changed in a local directory, and remove what is no longer there and was put there by a run."""
        found = [path for path in directory.rglob("*") if path.is_file()]
        names = {path.relative_to(directory).as_posix(): path for path in found}
        names = {name: path for name, path in names.items() if _is_finished(name)}
        for name in sorted(names, key=lambda name: (name.endswith(_LAST), name)):
            if self.known.get(name) != (state := _state(names[name])):
                self.put(names[name], f"{self.root}/{name}", kept=True)
                self.known[name] = state
        for name in self.known.keys() - names.keys():
            with self._reaching():
                self.files.rm_file(f"{self.root}/{name}")
            del self.known[name]

    def get(self, place: str, file: Path) -> tuple[int, int]:
        """Copy one file, and return what tells whether the copy is changed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching():
            self.files.get_file(place, str(file))
        return _state(file)

    def put(self, file: Path, place: str, *, kept: bool = False) -> None:
        """Copy one file."""
        with self._reaching(f"; it is kept as {file}" if kept else ""):
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), place)

    @contextmanager
    def _reaching(self, otherwise: str = "") -> Iterator[Any]:
        try:
            yield
        except Exception as error:
            # Each storage raises errors of its own kind about rights, networks and names.
            raise UserError(
                f"{self.name} must be storage that can be reached, got {self.url!r} ({one_line(error)}){otherwise}."
            ) from error


def _is_finished(name: str) -> bool:
    return not any(map(_UNFINISHED.search, name.split("/")))


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
