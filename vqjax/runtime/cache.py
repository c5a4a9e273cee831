"""The user's cache directory."""

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """Return a directory under ``$XDG_CACHE_HOME/vqjax`` or ``~/.cache/vqjax``, made if missing.

    What lies there can be made again: readers have to expect that it is gone, old, damaged, or written by others.

    Args:
      name: Name of the directory.

    Returns:
      The directory; None if none can be written.

    Example:
      >>> directory = user_cache("compiled")
    """
    try:
        # A relative path is invalid, says the specification of the variable.
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        directory = (given if given.is_absolute() else Path.home() / ".cache") / "vqjax" / name
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return directory if os.access(directory, os.W_OK) else None
