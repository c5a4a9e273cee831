"""Source ``image_folder``: image files of any size, anywhere below a directory."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt64

from vqjax.data.crops import Crop, CropName, RandomCropName
from vqjax.data.dataset import Example, Splits, UnreadableImage
from vqjax.data.folder_index import index_folder, printable
from vqjax.data.folder_splits import FolderSplit, divided_folder, folder_of, report_unreadable
from vqjax.data.images import Size, check_channels, height_and_width, image_suffixes
from vqjax.errors import UserError

_USUAL_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class ImageFiles:
    """Image files, decoded when they are read, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      root: Directory of the files.
      files: The files.
      image_size: Height and width of the images in pixels, or one number for both.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: What is taken of images of other sizes.
      labels: Class of each file; None if they have none.
      class_names: The class that each label stands for; None if there are no labels.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: Sequence["_ImageFile"],
        image_size: Size,
        channels: int,
        crop: Crop,
        labels: Int32[np.ndarray, " files"] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.name, self.class_names = name, class_names
        self._root, self._files, self._labels = root, files, labels
        self._size, self._channels = height_and_width(image_size), channels
        self._crop, self.is_random = crop, crop.random is not None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return an example with a random crop, if this dataset has random ones and there is a generator."""
        path = self._root / self._files[index].path
        image = self._crop.decode(path, self._size, generator, path=path, channels=self._channels)
        return {"image": image} if self._labels is None else {"image": image, "label": self._labels[index]}

    def origin(self, index: int) -> str:
        """Return the path of a file, relative to the directory of all."""
        return printable(self._files[index].path)

    def content(self, index: int) -> bytes:
        """Return the bytes of a file; none if it is gone."""
        try:
            return (self._root / self._files[index].path).read_bytes()
        except OSError:
            return b""

    def stamp(self) -> str:
        """Return what the images depend on."""
        # Not the digests, which are those of the first and last bytes: a pixel between them may change.
        files = repr([(file.path, file.stamp) for file in self._files]).encode()
        described = hashlib.sha256(files).hexdigest(), self.class_names
        return repr((str(self._root.resolve()), described, self._size, self._channels, self._crop))

    def digests(self) -> UInt64[np.ndarray, " files"]:
        """Return checksums of the first and last bytes of each file."""
        return np.array([file.digest for file in self._files], np.uint64)


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
    root, splits = divided_folder(name, train_split, eval_split, eval_fraction, _image_files, train_images=train_images)

    def dataset(split: FolderSplit, crop: Crop) -> ImageFiles:
        labels, class_names = split.labels, split.class_names
        return ImageFiles(split.name, root, split.files, image_size, channels, crop, labels, class_names)

    crops = Crop(crop, random_crop), Crop(crop)
    return Splits(*(dataset(split, crop) for split, crop in zip(splits, crops, strict=True)))


class _ImageFile(NamedTuple):
    path: str  # relative to the directory of all splits
    folder: str | None  # the subdirectory of the split's directory that holds it, None if it lies directly there
    digest: int
    stamp: tuple[int, int, int] | None  # of the index


def _image_files(root: Path, split: str) -> list[_ImageFile]:
    """The readable images of a split, or of all if there are no splits."""
    files = index_folder(root / split)
    if not files:
        others = sorted(image_suffixes() - set(_USUAL_SUFFIXES))
        raise UserError(
            f"config.data.name must be a directory of images, got {root / split} without any "
            f"{', '.join(_USUAL_SUFFIXES)} files (or {', '.join(others)}); correct the path."
        )
    errors = [UnreadableImage(root / split / file.path, file.error) for file in files if file.error]
    report_unreadable(root / split, errors, len(files))
    readable = [file for file in files if not file.error]
    return [
        _ImageFile(os.path.join(split, file.path), folder_of(file.path), file.digest, file.stamp) for file in readable
    ]
