"""The run's directory: usable, and used by one run at a time."""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vqjax.errors import UserError
from vqjax.runtime.processes import agree, first_before_others, is_first

SHARE_THE_WORKDIR = "Give all of them the same --workdir, on a file system that they share."
_LOCK_FILE = ".lock"


def usable_workdir(workdir: str | Path) -> Path:
    """Checks, without creating anything, that a run can be written to a directory.

    Args:
      workdir: As the user gave it; ``~`` is the home directory.

    Returns:
      The path.

    Raises:
      UserError: It is empty, no UTF-8, no directory, or cannot be written to.

    Example:
      >>> usable_workdir("runs/quickstart").name
      'quickstart'
    """
    if not str(workdir):
        raise UserError("--workdir is empty: name the directory of the run, such as --workdir=runs/first.")
    if not _is_unicode(str(workdir)):
        raise UserError(f"--workdir={str(workdir)!r} is not allowed: its name is not UTF-8. Use another path.")
    path = Path(workdir).expanduser()
    existing = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir} is not allowed: {existing} is no directory. Use another path.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir} is not allowed: {existing} cannot be written to. Use another path.")
    return path


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a directory for as long as this one lasts; the lock ends with the process.

    Of several processes of one run the first holds it, and the others make sure that they see its lock.

    Args:
      workdir: The run's directory; created if missing.

    Raises:
      UserError: Another run is using it, it cannot be created, or the processes have different ones.
    """
    with _locked(workdir) if is_first() else nullcontext():
        with first_before_others("the directory is locked"):
            path = workdir / _LOCK_FILE
            token = path.read_text() if path.exists() else "none"
        agree("--workdir", token, SHARE_THE_WORKDIR)
        yield


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Not emptied before it is locked: what is in it may belong to another run.
        lock = (workdir / _LOCK_FILE).open("a")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror}). Use another path.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir={workdir} is in use by another run. Wait for it to end, or use another --workdir."
            ) from error
        lock.truncate(0)
        lock.write(uuid.uuid4().hex)
        lock.flush()
        os.fsync(lock.fileno())
        yield


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
