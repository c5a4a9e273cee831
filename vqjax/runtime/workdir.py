"""Directory of a run: validation and locking."""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vqjax.errors import UserError
from vqjax.runtime.paths import is_unicode, local_path
from vqjax.runtime.processes import assert_same_on_all_processes, is_main_process, main_process_first

SHARE_THE_WORKDIR = "Pass the same --workdir to all of them, on a file system that they share."
_LOCK_FILE = ".lock"
# What a run writes: found before its first step rather than at its end where something else is in the way.
_DIRECTORIES = ("checkpoints", "eval", "tensorboard")
_FILES = (_LOCK_FILE, "config.json", "metrics.jsonl", "reconstructions.png")


def usable_workdir(workdir: str | Path) -> Path:
    """Validate the directory of a run without creating it.

    Args:
      workdir: Path as the user typed it; see :func:`vqjax.runtime.paths.local_path`.

    Returns:
      The expanded path.

    Raises:
      UserError: The path is empty, a URL, not UTF-8, not a directory, or not writable, or something is in the way of
        what a run writes there.

    Example:
      >>> usable_workdir("runs/quickstart").name
      'quickstart'
    """
    if not str(workdir):
        raise UserError("--workdir must be the directory of the run, got ''; pass, for example, --workdir=runs/first.")
    if not is_unicode(str(workdir)):
        raise UserError(f"--workdir must have a name in UTF-8, got {str(workdir)!r}; use another path.")
    path = local_path(workdir, "--workdir")
    existing = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not existing.is_dir():
        raise UserError(f"--workdir must be a directory, got {workdir}: {existing} is not one; use another path.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir must be writable, got {workdir}: {existing} is not writable; use another path.")
    for names, is_wrong, expected in ((_DIRECTORIES, Path.is_file, "directory"), (_FILES, Path.is_dir, "file")):
        for name in names:
            if is_wrong(path / name):
                raise UserError(f"{path / name} must be a {expected}; move away what is in its place.")
    return path


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Lock a directory against other runs; the lock ends with the process.

    With several processes the main one holds the lock, and the others check that they see it.

    Args:
      workdir: Directory of the run; created if missing.

    Raises:
      UserError: Another run holds the lock, the directory cannot be created, or the processes use different ones.
    """
    with _locked(workdir) if is_main_process() else nullcontext():
        with main_process_first("the directory is locked"):
            path = workdir / _LOCK_FILE
            token = path.read_text() if path.exists() else "none"
        assert_same_on_all_processes("--workdir", token, SHARE_THE_WORKDIR)
        yield


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Not emptied before it is locked: what is in it may belong to another run.
        lock = (workdir / _LOCK_FILE).open("a")
    except OSError as error:
        raise UserError(f"--workdir must be writable, got {workdir} ({error.strerror}); use another path.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir={workdir} is in use by another run; wait for it to end, or use another --workdir."
            ) from error
        lock.truncate(0)
        lock.write(uuid.uuid4().hex)
        lock.flush()
        os.fsync(lock.fileno())
        yield
