"""Source ``image_folder``: image files of any size, anywhere below a directory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt64

from vqjax.data.batches import hold_out
from vqjax.data.crops import Crop, CropName, RandomCropName
from vqjax.data.dataset import Example, Splits, UnreadableImage
from vqjax.data.folder_index import index_folder, is_hidden, printable
from vqjax.data.images import Size, check_channels, height_and_width, image_suffixes
from vqjax.data.reading import UnreadableReport
from vqjax.errors import UserError
from vqjax.runtime.paths import local_path

_USUAL_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class ImageFiles:
    """Image files, decoded when they are read, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      root: Directory of the files.
      paths: The files, relative to it.
      image_size: Height and width of the images in pixels, or one number for both.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: What is taken of images of other sizes.
      digests: Checksums of the files.
      labels: Class of each file; None if they have none.
      class_names: The class that each label stands for; None if there are no labels.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Sequence[str],
        image_size: Size,
        channels: int,
        crop: Crop,
        digests: UInt64[np.ndarray, " paths"],
        labels: Int32[np.ndarray, " paths"] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.name, self.class_names = name, class_names
        self._root, self._paths, self._labels = root, paths, labels
        self._size, self._channels, self._digests = height_and_width(image_size), channels, digests
        self._crop, self.is_random = crop, crop.random is not None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return an example with a random crop, if this dataset has random ones and there is a generator."""
        path = self._root / self._paths[index]
        image = self._crop.decode(path, self._size, generator, path=path, channels=self._channels)
        return {"image": image} if self._labels is None else {"image": image, "label": self._labels[index]}

    def origin(self, index: int) -> str:
        """Return the path of a file, relative to the directory of all."""
        return printable(self._paths[index])

    def content(self, index: int) -> bytes:
        """Return the bytes of a file; none if it is gone."""
        try:
            return (self._root / self._paths[index]).read_bytes()
        except OSError:
            return b""

    def digests(self) -> UInt64[np.ndarray, " paths"]:
        """Return checksums of the first and last bytes of each file."""
        return self._digests


def image_folder_splits(
    name: str | Path,
    image_size: Size = 32,
    train_split: str | None = "train",
    eval_split: str | None = "test",
    eval_fraction: float = 0.1,
    channels: int = 3,
    crop: CropName = "lanczos",
    random_crop: RandomCropName | None = None,
    train_images: int | None = None,
) -> Splits:
    """Find the images below a directory; other files are counted in the log and ignored.

    Hidden and system files and directories, such as ``.ipynb_checkpoints`` and ``__MACOSX``, are ignored as well.

    If every image lies in a subdirectory of its split, as ImageNet is laid out, the sorted names of these
    subdirectories are the classes; otherwise there are no labels.

    Args:
      name: The directory, searched recursively, symbolic links included.
      image_size: Height and width of the images in pixels, or one number for both.
      train_split: Subdirectory with the training images; None if the directory is not divided into splits.
      eval_split: Subdirectory with the held-out images; None if the directory is not divided into splits.
      eval_fraction: Share held out at random if neither subdirectory exists, in (0, 1).
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: How images of other sizes are scaled and cropped: ``center`` of :class:`vqjax.data.crops.Crop`.
      random_crop: What is taken of training images instead, anew each time: ``random`` of it.
      train_images: Number of training images, the same ones every time, chosen at random; None for all.

    Returns:
      Both splits, in sorted order of the paths.

    Raises:
      UserError: The directory is missing or holds no readable images, or only one of the subdirectories exists.
    """
    check_channels(channels)
    root, name = local_path(name, "config.data.name"), str(name)
    if not root.is_dir():
        found = "a file" if root.exists() else "a path that does not exist"
        raise UserError(f"config.data.name must be a directory of images, got {name!r}, {found}; correct the path.")
    splits: list[tuple[Any, list[_ImageFile]]]
    if _has_split_directories(root, train_split, eval_split):
        splits = [(split, _image_files(root, split)) for split in (train_split, eval_split)]
    else:
        files = _image_files(root)
        train, evaluation = hold_out(len(files), eval_fraction, name=name)
        splits = [("train", [files[i] for i in train]), ("eval", [files[i] for i in evaluation])]
    if train_images is not None:
        splits[0] = splits[0][0], some_of(splits[0][1], train_images)
    # Those of both splits, so that a class has the same number in both.
    folders = {file.folder for _, files in splits for file in files}
    classes = None if None in folders else sorted(folders)

    def dataset(split: str, files: Sequence[_ImageFile], crop: Crop) -> ImageFiles:
        labelled = {}
        if classes is not None:
            numbers = {folder: number for number, folder in enumerate(classes)}
            labels = np.array([numbers[file.folder] for file in files], np.int32)
            labelled = {"labels": labels, "class_names": tuple(map(_as_utf8, classes))}
        full_name, paths = _as_utf8(f"{root.resolve().name}/{split}"), [file.path for file in files]
        digests = np.array([file.digest for file in files], np.uint64)
        return ImageFiles(full_name, root, paths, image_size, channels, crop, digests, **labelled)

    crops = Crop(crop, random_crop), Crop(crop)
    return Splits(*(dataset(split, files, crop) for (split, files), crop in zip(splits, crops, strict=True)))


class _ImageFile(NamedTuple):
    path: str  # relative to the directory of all splits
    folder: str | None  # the subdirectory of the split's directory that holds it, None if it lies directly there
    digest: int


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


def _image_files(root: Path, split: str = "") -> list[_ImageFile]:
    """The readable images of a split, or of all if there are no splits."""
    files = index_folder(root / split)
    if not files:
        others = sorted(image_suffixes() - set(_USUAL_SUFFIXES))
        raise UserError(
            f"config.data.name must be a directory of images, got {root / split} without any "
            f"{', '.join(_USUAL_SUFFIXES)} files (or {', '.join(others)}); correct the path."
        )
    report = UnreadableReport(str(root / split))
    for file in files:
        if file.error:
            report.add(UnreadableImage(root / split / file.path, file.error))
    report.summarize(len(files))
    if report.count == len(files):
        raise UserError(
            f"none of the {len(files)} image files below {root / split} can be read; replace the damaged files."
        )
    readable = [file for file in files if not file.error]
    return [_ImageFile(os.path.join(split, file.path), _folder(file.path), file.digest) for file in readable]


def _folder(path: str) -> str | None:
    folder, slash, _ = path.partition("/")
    return folder if slash else None
