"""`image_folder`: JPEG, PNG and WebP files of any size, anywhere below a directory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Splits, UnreadableImage
from vqjax.data.images import check_header, decode_image
from vqjax.data.reading import READING_THREADS, UnreadableReport
from vqjax.errors import UserError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class ImageFiles:
    """Image files, decoded when asked for, an `ImageDataset`.

    Args:
        name: what reports call the images.
        paths: the files.
        image_size: the side of the images in pixels; others are resized and center-cropped.
    """

    def __init__(self, name: str, paths: Sequence[Path], image_size: int):
        self.name = name
        self._paths = paths
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        path = self._paths[index]
        return decode_image(path, self._image_size, path=path)


def image_folder_splits(
    name: str, image_size: int = 32, train_split: str = "train", eval_split: str = "test", eval_fraction: float = 0.1
) -> Splits:
    """Finds the images below a directory; files that are no images at all are named and left out.

    Args:
        directory: searched recursively, symbolic links included.
        image_size: the side of the images in pixels.
        train_split: a subdirectory with the training images; "" if there are no such subdirectories.
        eval_split: a subdirectory with the held-out images; "" if there are no such subdirectories.
        eval_fraction: the share held out at random if neither subdirectory exists.

    Returns:
        both splits, in sorted order of the paths.

    Raises:
        UserError: the directory is missing or holds no readable images, or only one of the subdirectories exists.
    """
    directory = name
    root = Path(directory).expanduser()
    if not root.is_dir():
        problem = "is a file, not a directory" if root.exists() else "does not exist"
        raise UserError(f"config.data.name={directory!r} {problem}; set it to a directory of images")
    # Reports are UTF-8, names of directories need not be.
    name = root.resolve().name.encode(errors="replace").decode()
    if _has_split_directories(root, train_split, eval_split):
        train, heldout = (
            ImageFiles(f"{name}/{s}", _image_paths(root / s), image_size) for s in (train_split, eval_split)
        )
        return Splits(train, heldout)
    paths = _image_paths(root)
    train_indices, heldout_indices = hold_out(len(paths), eval_fraction, name=directory)
    return Splits(
        ImageFiles(f"{name}/train", [paths[i] for i in train_indices], image_size),
        ImageFiles(f"{name}/heldout", [paths[i] for i in heldout_indices], image_size),
    )


def _has_split_directories(root: Path, train_split: str, eval_split: str) -> bool:
    has_train = bool(train_split) and (root / train_split).is_dir()
    has_eval = bool(eval_split) and (root / eval_split).is_dir()
    if has_train != has_eval:
        # Holding out from everything below root would train on the images of, say, val/.
        found, missing, field = (
            (train_split, eval_split, "eval_split") if has_train else (eval_split, train_split, "train_split")
        )
        others = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name != found)
        raise UserError(
            f"{root} has {found}/ but no {missing}/; set config.data.{field} to one of {others}, or both "
            "splits to '' to hold out config.data.eval_fraction of all images"
        )
    return has_train


def _image_paths(root: Path) -> list[Path]:
    candidates = sorted(path for path in _walk(root) if path.suffix.lower() in _SUFFIXES)
    if not candidates:
        raise UserError(
            f"{root} holds no {', '.join(sorted(_SUFFIXES))} files; set config.data.name to a directory of images"
        )
    report = UnreadableReport(str(root))
    with ThreadPoolExecutor(READING_THREADS) as threads:
        errors = list(threads.map(_header_error, candidates))
    for error in filter(None, errors):
        report.add(error)
    report.summarize(len(candidates))
    if report.count == len(candidates):
        raise UserError(
            f"none of the {len(candidates)} image files below {root} can be read; replace the damaged files"
        )
    return [path for path, error in zip(candidates, errors, strict=True) if error is None]


def _walk(root: Path) -> Iterator[Path]:
    """Every file below `root`, through symbolic links, but no directory twice: links may form a loop."""
    seen = set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subdirectories.sort()  # which of two links to one directory counts must not depend on the file system
        yield from (Path(directory, file) for file in files)


def _header_error(path: Path) -> UnreadableImage | None:
    try:
        check_header(path)
    except UnreadableImage as error:
        return error
    return None
