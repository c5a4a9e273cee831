"""Token file: the indices of a split, readable with NumPy alone."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from vqjax.errors import UserError, one_line
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import is_url, local_path
from vqjax.runtime.remote import local_file

_WIDTHS = (np.uint8, np.uint16, np.uint32)


class Tokens(NamedTuple):
    """Content of a token file.

    Attributes:
      indices: Codes in [0, num_codes), in the order of the split.
      num_codes: Number of codes in the codebook.
      context: Origin of the indices, such as dataset, split and checkpoint step.
      labels: Class of each image; None if the images have none.
      class_names: The class that each label stands for; None likewise.
      origins: File or row that each image comes from; None if it is not known.
    """

    indices: Int32[np.ndarray, " images *tokens"]
    num_codes: int
    context: dict[str, Any]
    labels: Int32[np.ndarray, " images"] | None = None
    class_names: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None


def save_tokens(
    path: str | os.PathLike[str],
    indices: Int[np.ndarray, " images *tokens"],
    *,
    num_codes: int,
    context: Mapping[str, Any],
    labels: Int[np.ndarray, " images"] | None = None,
    class_names: Sequence[str] | None = None,
    origins: Sequence[str] | None = None,
) -> None:
    """Write indices as a compressed .npz with the arrays ``indices``, ``num_codes`` and ``context``.

    ``indices`` is stored as the narrowest of uint8, uint16 and uint32 that can hold every code; ``context`` is JSON.
    The arrays ``labels``, ``class_names`` and ``origins`` are stored if they are given.

    Args:
      path: The file; an older one is replaced atomically.
      indices: Codes in [0, num_codes), in the order of the split.
      num_codes: Number of codes in the codebook.
      context: Origin of the indices, such as dataset, split and checkpoint step.
      labels: Class of each image.
      class_names: The class that each label stands for.
      origins: File or row that each image comes from.

    Raises:
      UserError: An index is out of range, there are more or fewer labels or origins than images, or the file could not
        be written.

    Example:
      >>> import tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "tokens.npz")
      >>> files = ["cat.png", "dog.png"]
      >>> save_tokens(path, np.array([[0, 511], [3, 4]]), num_codes=512, context={"split": "test"}, origins=files)
      >>> load_tokens(path).indices.tolist(), np.load(path)["indices"].dtype.name, load_tokens(path).origins
      ([[0, 511], [3, 4]], 'uint16', ('cat.png', 'dog.png'))
    """
    if not is_url(path) and local_path(path).is_dir():
        raise UserError(f"path must be a file, got the directory {str(path)!r}; use {path}/tokens.npz.")
    if not np.issubdtype(indices.dtype, np.integer) or indices.ndim < 2:
        raise UserError(
            f"indices must be integers of shape [images, tokens, ...], got {indices.dtype} of shape "
            f"{list(indices.shape)}; pass what encode returns."
        )
    if not _within(indices, num_codes):
        raise UserError(
            f"indices must be in [0, {num_codes - 1}] for num_codes={num_codes}, got {indices.min()} to "
            f"{indices.max()}; pass the num_codes of the quantizer that produced them."
        )
    for name, rows in (("labels", labels), ("origins", origins)):
        if rows is not None and len(rows) != len(indices):
            raise UserError(f"{name} must be one for each of the {len(indices)} images, got {len(rows)}.")
    known = {
        "labels": None if labels is None else np.asarray(labels, np.int32),
        "class_names": None if class_names is None else np.array(class_names, np.str_),
        "origins": None if origins is None else np.array(origins, np.str_),
    }
    try:
        with local_file(path, "path") as place, atomic_file(place) as file:
            np.savez_compressed(
                file,
                indices=indices.astype(narrowest(num_codes)),
                num_codes=np.int64(num_codes),
                context=np.array(strict_json(context)),
                **{name: array for name, array in known.items() if array is not None},
            )
    except OSError as error:
        raise UserError(f"path={str(path)!r} could not be written ({error.strerror}); use another path.") from error


def narrowest(num_codes: int) -> type[np.unsignedinteger]:
    """Return the narrowest of uint8, uint16 and uint32 that can hold every code.

    Args:
      num_codes: Number of codes.

    Example:
      >>> narrowest(256).__name__, narrowest(257).__name__
      ('uint8', 'uint16')
    """
    return next(width for width in _WIDTHS if num_codes - 1 <= np.iinfo(width).max)


def load_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Read a file written by :func:`save_tokens`.

    Args:
      path: The .npz file.

    Returns:
      The indices, the number of codes, the context, and labels and origins if the file has them.

    Raises:
      UserError: The file is missing or damaged, is not a token file, or holds indices outside [0, num_codes).

    Example:
      >>> load_tokens("nowhere.npz")
      Traceback (most recent call last):
      vqjax.errors.UserError: path='nowhere.npz' does not exist; create it with `python eval.py --workdir=... ...
    """
    with local_file(path, "path") as place:
        place = local_path(place)
        if not place.exists():
            raise UserError(f"path={str(path)!r} does not exist; create it with {_export(path)}.")
        try:
            tokens = _read(place)
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


def _export(path: str | os.PathLike[str]) -> str:
    return f"`python eval.py --workdir=... --export_tokens={path}`"


def _read(path: Path) -> Tokens:
    if not path.is_file():
        # Opening a named pipe would block until another process writes to it.
        raise ValueError("not a regular file")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        indices, num_codes, context = arrays["indices"], arrays["num_codes"], json.loads(str(arrays["context"]))
        labels, class_names, origins = (arrays.get(name) for name in ("labels", "class_names", "origins"))
    if indices.ndim < 2 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"its indices are {indices.dtype} of shape {list(indices.shape)}")
    if num_codes.shape or not np.issubdtype(num_codes.dtype, np.integer) or num_codes < 1:
        raise ValueError("its num_codes is not a positive integer")
    if not isinstance(context, dict):
        raise ValueError("its context is not a JSON object")
    if labels is not None and (labels.shape != indices.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"its labels are {labels.dtype} of shape {list(labels.shape)}")
    for name, texts, number in (("class names", class_names, None), ("origins", origins, len(indices))):
        if texts is not None and (texts.dtype.kind != "U" or texts.ndim != 1 or number not in (None, len(texts))):
            raise ValueError(f"its {name} are {texts.dtype} of shape {list(texts.shape)}")
    return Tokens(
        indices.astype(np.int32),
        int(num_codes),
        context,
        None if labels is None else labels.astype(np.int32),
        *(None if texts is None else tuple(texts.tolist()) for texts in (class_names, origins)),
    )


def _within(indices: Int[np.ndarray, "..."], num_codes: int) -> bool:
    return indices.size == 0 or bool(indices.min() >= 0 and indices.max() < num_codes)
