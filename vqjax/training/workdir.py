"""The run's directory: usable, and used by one run at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqjax.errors import UserError
from vqjax.training.processes import is_first


def usable_workdir(workdir: str | Path) -> Path:
    """Checks, without creating anything, that a run can be written to a directory.

    Args:
      workdir: As the user gave it; ``~`` is the home directory.

    Returns:
      The path.

    Raises:
      UserError: It is empty, no directory, or cannot be written to.

    Example:
      >>> usable_workdir("runs/quickstart").name
      'quickstart'
    """
    if not str(workdir):
        raise UserError("--workdir is empty: name the directory of the run, such as --workdir=runs/first.")
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

    Of several processes of one run the first holds it.

    Args:
      workdir: The run's directory; created if missing.

    Raises:
      UserError: Another process is using it, or it cannot be created.
    """
    if not is_first():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror}). Use another path.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir={workdir} is in use by another run. Wait for it to end, or use another --workdir."
            ) from error
        yield
