"""Token file: the indices of a split, readable with NumPy alone."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from vqjax.errors import UserError, one_line
from vqjax.runtime.files import atomic_file, strict_json

_WIDTHS = (np.uint8, np.uint16, np.uint32)


class Tokens(NamedTuple):
    """Content of a token file.

    Attributes:
      indices: Codes in [0, num_codes), in the order of the split.
      num_codes: Number of codes in the codebook.
      context: Origin of the indices, such as dataset, split and checkpoint step.
    """

    indices: Int32[np.ndarray, " images *tokens"]
    num_codes: int
    context: dict[str, Any]


def save_tokens(
    path: str | os.PathLike[str],
    indices: Int[np.ndarray, " images *tokens"],
    *,
    num_codes: int,
    context: Mapping[str, Any],
) -> None:
    """Write indices as a compressed .npz with the arrays ``indices``, ``num_codes`` and ``context``.

    ``indices`` is stored as the narrowest of uint8, uint16 and uint32 that can hold every code; ``context`` is JSON.

    Args:
      path: The file; an older one is replaced atomically.
      indices: Codes in [0, num_codes), in the order of the split.
      num_codes: Number of codes in the codebook.
      context: Origin of the indices, such as dataset, split and checkpoint step.

    Raises:
      UserError: An index is out of range, or the file could not be written.

    Example:
      >>> import tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "tokens.npz")
      >>> save_tokens(path, np.array([[[0, 511]]]), num_codes=512, context={"split": "test"})
      >>> load_tokens(path).indices.tolist(), np.load(path)["indices"].dtype.name
      ([[[0, 511]]], 'uint16')
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"path must be a file, got the directory {str(path)!r}; use {path}/tokens.npz.")
    if not _within(indices, num_codes):
        raise UserError(
            f"indices must be in [0, {num_codes - 1}] for num_codes={num_codes}, got {indices.min()} to "
            f"{indices.max()}; pass the num_codes of the quantizer that produced them."
        )
    narrowest = next(width for width in _WIDTHS if num_codes - 1 <= np.iinfo(width).max)
    try:
        with atomic_file(path) as file:
            np.savez_compressed(
                file,
                indices=indices.astype(narrowest),
                num_codes=np.int64(num_codes),
                context=np.array(strict_json(context)),
            )
    except OSError as error:
        raise UserError(f"path={str(path)!r} could not be written ({error.strerror}); use another path.") from error


def load_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Read a file written by :func:`save_tokens`.

    Args:
      path: The .npz file.

    Returns:
      The indices, the number of codes, and the context.

    Raises:
      UserError: The file is missing or damaged, is not a token file, or holds indices outside [0, num_codes).

    Example:
      >>> load_tokens("nowhere.npz")
      Traceback (most recent call last):
      vqjax.errors.UserError: path='nowhere.npz' does not exist; create it with `python eval.py --workdir=... ...
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"path={str(path)!r} does not exist; create it with {_export(path)}.")
    try:
        tokens = _read(path)
    except Exception as error:  # damaged archives raise a dozen unrelated types
        raise UserError(
            f"path={str(path)!r} is not a valid token file ({one_line(error)}); recreate it with {_export(path)}."
        ) from error
    if not _within(tokens.indices, tokens.num_codes):
        raise UserError(
            f"path={str(path)!r} must hold indices in [0, {tokens.num_codes - 1}], got {tokens.indices.min()} to "
            f"{tokens.indices.max()}; recreate it with {_export(path)}."
        )
    return tokens


def _export(path: Path) -> str:
    return f"`python eval.py --workdir=... --export_tokens={path}`"


def _read(path: Path) -> Tokens:
    if not path.is_file():
        # Opening a named pipe would block until another process writes to it.
        raise ValueError("not a regular file")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        indices, num_codes, context = arrays["indices"], arrays["num_codes"], json.loads(str(arrays["context"]))
    if indices.ndim < 2 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"its indices are {indices.dtype} of shape {list(indices.shape)}")
    if num_codes.shape or not np.issubdtype(num_codes.dtype, np.integer) or num_codes < 1:
        raise ValueError("its num_codes is not a positive integer")
    if not isinstance(context, dict):
        raise ValueError("its context is not a JSON object")
    return Tokens(indices.astype(np.int32), int(num_codes), context)


def _within(indices: Int[np.ndarray, "..."], num_codes: int) -> bool:
    return indices.size == 0 or bool(indices.min() >= 0 and indices.max() < num_codes)
