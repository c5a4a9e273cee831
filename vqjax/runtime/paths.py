"""Paths as users give them: home directories, file URLs, and a refusal of all other URLs."""

import errno
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vqjax.errors import UserError

# One slash as well: pathlib has made s3:/bucket of s3://bucket. A drive of one letter is no scheme.
# Behind two colons stands another URL, as in simplecache::s3://bucket.
_URL = re.compile(r"([a-z][a-z0-9+.-]+)(?:::[a-z][a-z0-9+.-]+)*:/", re.IGNORECASE)
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL of storage elsewhere.

    Example:
      >>> [is_url(path) for path in ("gs://bucket/run", "file:///data", "runs/first")]
      [True, False, False]
    """
    scheme = _URL.match(os.fsdecode(path))
    return scheme is not None and scheme[1].lower() != "file"


def is_unicode(path: str) -> bool:
    r"""Return whether a path can be written as UTF-8: Python has surrogates for the bytes of one that cannot.

    Example:
      >>> is_unicode("café"), is_unicode(os.fsdecode(b"caf\xe9"))
      (True, False)
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def local_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return the place in the local file system that a user means.

    Args:
      path: A path, in which ``~`` and ``~user`` are home directories, or a URL ``file:///...``. It need not exist.
      name: Name of the argument in messages.

    Returns:
      The path.

    Raises:
      UserError: The path is empty, a URL with a different scheme, or cannot be reached.

    Example:
      >>> local_path("file:///data/my%20images").as_posix(), local_path("runs/first").as_posix()
      ('/data/my images', 'runs/first')
      >>> local_path("s3://bucket/run", "--workdir")
      Traceback (most recent call last):
      vqjax.errors.UserError: --workdir must be a local path, got 's3://bucket/run'; mount or copy that storage and ...
    """
    text = os.fsdecode(path)
    if not text:
        raise UserError(f"{name} must be a path, got ''.")
    if "\0" in text:
        raise UserError(f"{name} must be a path, got {text!r} with a zero byte.")
    scheme = _URL.match(text)
    if scheme and scheme[1].lower() == "file":
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise UserError(f"{name} must be a local path, got {text!r} on the host {url.netloc!r}.")
        text = unquote(url.path)
    elif scheme:
        raise UserError(
            f"{name} must be a local path, got {text!r}; mount or copy that storage and pass the path that it has here."
        )
    try:
        expanded = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name} must be a path, got {text!r}, whose home directory is unknown.") from error
    try:
        expanded.stat()
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise UserError(f"{name} must be a path that can be reached, got {text!r} ({error.strerror}).") from error
    except ValueError as error:  # surrogates that stand for no byte
        raise UserError(f"{name} must be a path, got {text!r} ({error}).") from error
    # Of ./s3:/x pathlib leaves s3:/x, which must not be taken for a URL later.
    return expanded.absolute() if _URL.match(str(expanded)) else expanded
