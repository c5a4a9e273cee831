"""Splits and classes of the files below a directory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from vqjax.data.batches import hold_out
from vqjax.data.dataset import UnreadableImage
from vqjax.data.folder_index import is_hidden
from vqjax.data.reading import UnreadableReport
from vqjax.errors import UserError
from vqjax.runtime.paths import local_path


class FolderSplit(NamedTuple):
    """The files of a split.

    Attributes:
      name: Name in reports.
      files: What was found, each with its ``folder``.
      labels: Class of each file; None if they have none.
      class_names: The class that each label stands for; None if there are no labels.
    """

    name: str
    files: list[Any]
    labels: Int32[np.ndarray, " files"] | None
    class_names: tuple[str, ...] | None


def divided_folder(
    name: str | Path,
    train_split: str | None,
    eval_split: str | None,
    eval_fraction: float,
    find: Callable[[Path, str], list[Any]],
    *,
    train_images: int | None = None,
    kind: str = "image",
) -> tuple[Path, list[FolderSplit]]:
    """Find the files below a directory, and divide them into splits and classes.

    Args:
      name: The directory.
      train_split: Subdirectory with the training files; None if the directory is not divided into splits.
      eval_split: Subdirectory with the held-out files; None if the directory is not divided into splits.
      eval_fraction: Share held out at random if neither subdirectory exists, in (0, 1).
      find: Function of the directory, and of a split's subdirectory or ``""``, that returns files with the attribute
        ``folder``: the subdirectory of the split that holds a file, None if it lies directly there.
      train_images: Number of training files, the same ones every time, chosen at random; None for all.
      kind: What the files are, for messages.

    Returns:
      The directory, and its training and held-out files.

    Raises:
      UserError: The directory is missing, only one of the subdirectories exists, or there are too few files.
    """
    root, name = local_path(name, "config.data.name"), str(name)
    if not root.is_dir():
        found = "a file" if root.exists() else "a path that does not exist"
        raise UserError(f"config.data.name must be a directory of {kind}s, got {name!r}, {found}; correct the path.")
    splits: list[tuple[Any, list[Any]]]
    if _has_split_directories(root, train_split, eval_split):
        splits = [(split, find(root, split)) for split in (train_split, eval_split)]
    else:
        files = find(root, "")
        train, evaluation = hold_out(len(files), eval_fraction, name=name)
        splits = [("train", [files[i] for i in train]), ("eval", [files[i] for i in evaluation])]
    if train_images is not None:
        splits[0] = splits[0][0], some_of(splits[0][1], train_images)
    # Those of both splits, so that a class has the same number in both.
    folders = {file.folder for _, files in splits for file in files}
    classes = None if None in folders else sorted(folders)

    def folder_split(split: str, files: list[Any]) -> FolderSplit:
        full_name = _as_utf8(f"{root.resolve().name}/{split}")
        if classes is None:
            return FolderSplit(full_name, files, None, None)
        numbers = {folder: number for number, folder in enumerate(classes)}
        labels = np.array([numbers[file.folder] for file in files], np.int32)
        return FolderSplit(full_name, files, labels, tuple(map(_as_utf8, classes)))

    return root, [folder_split(split, files) for split, files in splits]


def some_of(files: Sequence[Any], count: int) -> list[Any]:
    """Choose images at random, the same ones every time.

    Args:
      files: All of them.
      count: How many to take.

    Returns:
      The chosen ones, in their order.

    Raises:
      UserError: There are fewer.

    Example:
      >>> len(some_of(range(100), 10)), some_of(range(100), 10) == some_of(range(100), 10)
      (10, True)
    """
    if not 1 <= count <= len(files):
        raise UserError(
            f"config.data.train_images must be from 1 to {len(files)}, the training images that there are, or None for "
            f"all, got {count}."
        )
    chosen = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))[:count]
    return [files[i] for i in np.sort(chosen)]


def report_unreadable(place: Path, errors: Sequence[UnreadableImage], total: int, kind: str = "image") -> None:
    """Log the files of a directory that are left out.

    Args:
      place: The directory.
      errors: Why each of them is.
      total: Number of all files.
      kind: What the files are.

    Raises:
      UserError: No file is left.
    """
    report = UnreadableReport(str(place), kind)
    for error in errors:
        report.add(error)
    report.summarize(total)
    if report.count == total:
        raise UserError(
            f"none of the {total} {kind} files below {place} can be taken, the first because of: {errors[0].reason}; "
            "replace damaged files, or change config.data."
        )


def folder_of(path: str) -> str | None:
    """Return the first directory of a path; None if it has none.

    Args:
      path: A relative path.

    Example:
      >>> folder_of("cats/indoors/1.png"), folder_of("1.png")
      ('cats', None)
    """
    folder, slash, _ = path.partition("/")
    return folder if slash else None


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
        others = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name != found and not is_hidden(d.name))
        raise UserError(
            f"config.data.{field} must be a subdirectory of {root}, as {found} is, got {missing!r}; set it to one of "
            f"{others}, or both splits to None to hold out config.data.eval_fraction of all images."
        )
    return has_train
