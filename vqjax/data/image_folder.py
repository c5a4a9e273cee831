"""Source ``image_folder``: JPEG, PNG and WebP files of any size, anywhere below a directory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Example, Splits, UnreadableImage
from vqjax.data.images import check_header, decode_image
from vqjax.data.reading import READING_THREADS, UnreadableReport
from vqjax.errors import UserError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class ImageFiles:
    """Image files, decoded when they are read, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      paths: The files.
      image_size: Side of the images in pixels; others are resized and center-cropped.
      labels: Class of each file; None if they have none.
      class_names: The class that each label stands for; None if there are no labels.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        image_size: int,
        labels: Int32[np.ndarray, " paths"] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.name, self.class_names = name, class_names
        self._paths, self._labels = paths, labels
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        path = self._paths[index]
        image = decode_image(path, self._image_size, path=path)
        return {"image": image} if self._labels is None else {"image": image, "label": self._labels[index]}


def image_folder_splits(
    name: str,
    image_size: int = 32,
    train_split: str | None = "train",
    eval_split: str | None = "test",
    eval_fraction: float = 0.1,
) -> Splits:
    """Find the images below a directory; files that are not images are logged and left out.

    If every image lies in a subdirectory of its split, as ImageNet is laid out, the sorted names of these
    subdirectories are the classes; otherwise there are no labels.

    Args:
      name: The directory, searched recursively, symbolic links included.
      image_size: Side of the images in pixels.
      train_split: Subdirectory with the training images; None if the directory is not divided into splits.
      eval_split: Subdirectory with the held-out images; None if the directory is not divided into splits.
      eval_fraction: Share held out at random if neither subdirectory exists, in (0, 1).

    Returns:
      Both splits, in sorted order of the paths.

    Raises:
      UserError: The directory is missing or holds no readable images, or only one of the subdirectories exists.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "a path that does not exist"
        raise UserError(f"config.data.name must be a directory of images, got {name!r}, {found}; correct the path")
    if _has_split_directories(root, train_split, eval_split):
        splits = [(split, _image_files(root / split)) for split in (train_split, eval_split)]
    else:
        files = _image_files(root)
        train, evaluation = hold_out(len(files), eval_fraction, name=name)
        splits = [("train", [files[i] for i in train]), ("eval", [files[i] for i in evaluation])]
    # Those of both splits, so that a class has the same number in both.
    folders = {file.folder for _, files in splits for file in files}
    classes = None if None in folders else sorted(folders)
    return Splits(*(_dataset(f"{root.resolve().name}/{split}", files, image_size, classes) for split, files in splits))


class _ImageFile(NamedTuple):
    path: Path
    folder: str | None  # the subdirectory of the split's directory that holds it, None if it lies directly there


def _dataset(name: str, files: Sequence[_ImageFile], image_size: int, classes: Sequence[str] | None) -> ImageFiles:
    paths = [file.path for file in files]
    if classes is None:
        return ImageFiles(_as_utf8(name), paths, image_size)
    numbers = {folder: number for number, folder in enumerate(classes)}
    labels = np.array([numbers[file.folder] for file in files], np.int32)
    return ImageFiles(_as_utf8(name), paths, image_size, labels, tuple(map(_as_utf8, classes)))


def _as_utf8(name: str) -> str:
    """Replace the bytes of a file name that are not UTF-8, as reports are."""
    return name.encode(errors="replace").decode()


def _has_split_directories(root: Path, train_split: str | None, eval_split: str | None) -> bool:
    has_train = bool(train_split) and (root / train_split).is_dir()
    has_eval = bool(eval_split) and (root / eval_split).is_dir()
    if has_train != has_eval:
        # Holding out from everything below root would train on the images of, say, val/.
        found, missing, field = (
            (train_split, eval_split, "eval_split") if has_train else (eval_split, train_split, "train_split")
        )
        others = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name != found)
        raise UserError(
            f"config.data.{field} must be a subdirectory of {root}, as {found} is, got {missing!r}; set it to one of "
            f"{others}, or both splits to None to hold out config.data.eval_fraction of all images"
        )
    return has_train


def _image_files(root: Path) -> list[_ImageFile]:
    candidates = sorted(path for path in _walk(root) if path.suffix.lower() in _SUFFIXES)
    if not candidates:
        raise UserError(
            f"config.data.name must be a directory of images, got {root} without any {', '.join(sorted(_SUFFIXES))} "
            "files; correct the path"
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
    readable = (path for path, error in zip(candidates, errors, strict=True) if error is None)
    return [_ImageFile(path, _folder(path.relative_to(root).parts)) for path in readable]


def _folder(parts: tuple[str, ...]) -> str | None:
    return parts[0] if len(parts) > 1 else None


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file below ``root``, through symbolic links, but no directory twice: links may form a loop."""
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
