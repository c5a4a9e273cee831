"""Index of the image or video files below a directory, cached so that a later start reads only what has changed.

Reading the headers of a million files takes minutes, listing them seconds. The index of a directory is a file in the
user's cache (:func:`vqjax.runtime.cache.user_cache`), replaced as a whole; one that is damaged counts as none.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8
from tqdm import tqdm

from vqjax.data.dataset import UnreadableImage
from vqjax.data.duplicates import DIGESTED_BYTES, digest
from vqjax.data.images import check_header, image_suffixes
from vqjax.data.reading import READING_THREADS
from vqjax.runtime.cache import user_cache
from vqjax.runtime.files import atomic_file

_VERSION = 2
_NAMED = 5
# What systems and programs leave behind in directories of other people's files; names with a dot are hidden as well.
_OF_SYSTEMS = frozenset(
    {"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini"}
)


class IndexedFile(NamedTuple):
    """What is known of a file.

    Attributes:
      path: Path relative to the directory.
      stamp: Size, and times of the last change of content and of status in nanoseconds; None for a broken link.
      digest: Checksum of its size, beginning and end; 0 if it cannot be read.
      error: The reason why it cannot be read; empty if it can.
      facts: What was found out about it.
    """

    path: str
    stamp: tuple[int, int, int] | None
    digest: int = 0
    error: str = ""
    facts: tuple[float, ...] = ()


class FileKind(NamedTuple):
    """The files that are looked for.

    Attributes:
      cache: Name of the indices in the user's cache.
      suffixes: Their suffixes, in lower case.
      inspect: Function of a file that returns facts about it, as many for each file, to be kept in the index; it
        raises :class:`UnreadableImage`.
      few: So many files are inspected within about a second.
    """

    cache: str
    suffixes: frozenset[str]
    inspect: Callable[[Path], tuple[float, ...]]
    few: int


def index_folder(root: Path, kind: FileKind | None = None) -> list[IndexedFile]:
    """List the files of one kind below a directory, through symbolic links, and inspect those that have changed.

    Hidden and system files and directories are ignored, and so are files of other kinds; one line of the log says
    how many, by reason.

    Args:
      root: The directory.
      kind: The kind of the files; None for images, of which the headers are read.

    Returns:
      The files, in sorted order of their paths, unreadable ones included.
    """
    kind = kind or FileKind("image_folders", image_suffixes(), _image_facts, few=4000)
    left_out: Counter[str] = Counter()
    hidden: list[str] = []
    found = []
    for path, stamp in _walk(root, hidden, left_out):
        suffix = os.path.splitext(path)[1]
        if suffix.lower() in kind.suffixes:
            found.append(IndexedFile(path, stamp))
        else:
            left_out[suffix.lower() or "without a suffix"] += 1
    _report(root, hidden, left_out)
    # By parts, as paths are: a directory comes before what only begins like it.
    found.sort(key=lambda file: file.path.split("/"))
    cache = _cache_file(root, kind)
    known = _read(cache, root)
    fresh = [number for number, file in enumerate(found) if not _is_known(file, known)]
    with ThreadPoolExecutor(READING_THREADS) as threads:
        inspected = threads.map(lambda number: _inspect(root, found[number], kind), fresh)
        # None shows the bar on a terminal only.
        hide_bar = None if len(fresh) >= kind.few else True
        inspected = tqdm(inspected, f"reading headers in {root.name}", len(fresh), unit="file", disable=hide_bar)
        indexed = [known.get(file.path, file) for file in found]
        for number, file in zip(fresh, inspected, strict=True):
            indexed[number] = file
    # An error may be one of the moment, such as that of a network: unreadable files are tried again at every start.
    readable = {file.path: file for file in indexed if file.stamp is not None and not file.error}
    if readable != known:
        _write(cache, root, list(readable.values()))
    return indexed


def _walk(root: Path, hidden: list[str], left_out: Counter[str]) -> Iterator[tuple[str, tuple[int, int, int] | None]]:
    """Yield every file below a directory but no directory twice, as links may form a loop."""
    seen, waiting = set(), [""]
    while waiting:
        directory = waiting.pop()
        try:
            status = os.stat(root / directory)
            with os.scandir(root / directory) as entries:
                # Which of two links to one directory counts must not depend on the file system.
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            left_out[f"unreadable directories ({error.strerror})"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for entry in entries:
            path = f"{directory}/{entry.name}" if directory else entry.name
            if is_hidden(entry.name):
                hidden.append(path)
            elif _is_directory(entry):
                below.append(path)
            else:
                yield path, _stamp(entry)
        waiting += reversed(below)


def is_hidden(name: str) -> bool:
    """Return whether the name of a file or directory is hidden, or one that systems and programs leave behind.

    Args:
      name: The name, without the path to it.

    Example:
      >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("cats")
      (True, True, False)
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to themselves
        return False


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int, int] | None:
    try:
        status = entry.stat()
    except OSError:
        return None
    # A copy may keep the size and the time of the content it replaces, but not the time of the status.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _report(root: Path, hidden: list[str], left_out: Mapping[str, int]) -> None:
    reasons = [f"{number} {reason}" for reason, number in sorted(left_out.items(), key=_commonest)]
    if hidden:
        names = ", ".join(map(printable, hidden[:_NAMED])) + (", ..." if len(hidden) > _NAMED else "")
        reasons.insert(0, f"{len(hidden)} hidden or system files and directories ({names})")
    if reasons:
        logging.warning("%s: ignored %s", printable(str(root)), ", ".join(map(printable, reasons)))


def _commonest(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def printable(name: str) -> str:
    """Return a file name as text that every file can hold: bytes that are not UTF-8, and line breaks, are escaped.

    Args:
      name: The name, as :mod:`os` gives it.

    Example:
      >>> printable(os.fsdecode(b"caf\\xe9.png"))
      'caf\\\\xe9.png'
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _is_known(file: IndexedFile, known: Mapping[str, IndexedFile]) -> bool:
    return file.stamp is not None and file.path in known and known[file.path].stamp == file.stamp


def _image_facts(path: Path) -> tuple[float, ...]:
    """None, of a file that is an image."""
    check_header(path)
    return ()


def _inspect(root: Path, file: IndexedFile, kind: FileKind) -> IndexedFile:
    """Find out about a file, and its checksum."""
    path = root / file.path
    try:
        return file._replace(facts=kind.inspect(path), digest=_digest(path))
    except UnreadableImage as error:
        return file._replace(error=error.reason)
    except OSError as error:
        return file._replace(error=str(error.strerror))


def _digest(path: Path) -> int:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(DIGESTED_BYTES)
        file.seek(max(0, size - DIGESTED_BYTES))
        return digest(head, file.read(DIGESTED_BYTES), size)


def _cache_file(root: Path, kind: FileKind) -> Path | None:
    directory = user_cache(kind.cache)
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return None if directory is None else directory / f"{name}.npz"


def _write(cache: Path | None, root: Path, files: list[IndexedFile]) -> None:
    if cache is None:
        return
    try:
        with atomic_file(cache) as content:
            np.savez(
                content,
                version=np.int64(_VERSION),
                root=_joined([str(root.resolve())]),
                names=_joined([file.path for file in files]),
                stamps=np.array([file.stamp for file in files], np.int64).reshape(-1, 3),
                digests=np.array([file.digest for file in files], np.uint64),
                facts=np.array([file.facts for file in files], np.float64),
            )
    except OSError as error:
        logging.info("the index of %s is not kept (%s)", root, error)


def _read(cache: Path | None, root: Path) -> dict[str, IndexedFile]:
    """Files by path; none if there is no usable index."""
    try:
        if cache is None or not stat.S_ISREG(cache.stat().st_mode):
            return {}
        with cache.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            if arrays["version"] != _VERSION or _split(arrays["root"]) != [str(root.resolve())]:
                return {}
            columns = _split(arrays["names"]), *(arrays[key].tolist() for key in ("stamps", "digests", "facts"))
        rows = zip(*columns, strict=True)
        return {name: IndexedFile(name, tuple(stamp), number, "", tuple(facts)) for name, stamp, number, facts in rows}
    except Exception:  # a damaged archive raises a dozen unrelated types
        return {}


def _joined(names: list[str]) -> UInt8[np.ndarray, " bytes"]:
    """Names as bytes, which hold no zero: an array of objects would need pickle."""
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), np.uint8)


def _split(joined: UInt8[np.ndarray, " bytes"]) -> list[str]:
    return [os.fsdecode(name) for name in joined.tobytes().split(b"\0")]
