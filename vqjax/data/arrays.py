"""Source ``arrays``: images and labels that already are NumPy arrays, in a .npy or .npz file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from PIL import Image

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import resize_and_center_crop
from vqjax.errors import UserError, one_line

_ALLOWED = "uint8 of shape [images, height, width, 3], or grayscale without the 3 or with 1 instead"
_MOST_CLASSES = 2**20


class ArrayDataset:
    """Images of one array, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      images: ``[images, height, width, 3]``, ``[images, height, width, 1]`` or ``[images, height, width]``.
      image_size: Side of the images in pixels; others are resized and center-cropped.
      labels: Class of each image, in [0, number of classes); None if the images have none.
      class_names: The class that each label stands for; None names the classes by their numbers.
      indices: Indices of the images to take, in this order; all of them if None.

    Example:
      >>> labels = np.array([2, 0, 1], np.int32)
      >>> digits = ArrayDataset("digits", np.zeros((3, 28, 28), np.uint8), image_size=32, labels=labels)
      >>> digits[0]["image"].shape, int(digits[0]["label"]), digits.class_names
      ((32, 32, 3), 2, ('0', '1', '2'))
    """

    def __init__(
        self,
        name: str,
        images: UInt8[np.ndarray, "images height width *channels"],
        image_size: int,
        labels: Int32[np.ndarray, " images"] | None = None,
        class_names: tuple[str, ...] | None = None,
        indices: Shaped[np.ndarray, " chosen"] | None = None,
    ):
        self.name = name
        if labels is not None and class_names is None:
            class_names = _numbered_classes([labels])
        self.class_names = class_names
        self._images, self._labels = images, labels
        self._image_size = image_size
        self._indices = np.arange(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        row = self._indices[index]
        image = _square_rgb(self._images[row], self._image_size)
        return {"image": image} if self._labels is None else {"image": image, "label": self._labels[row]}


def _square_rgb(image: UInt8[np.ndarray, "height width *channels"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    rgb = np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))
    if image.shape[:2] == (size, size):
        return np.array(rgb)
    return resize_and_center_crop(Image.fromarray(np.ascontiguousarray(rgb)), size)


def _numbered_classes(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    return tuple(map(str, range(max(int(some.max()) for some in labels) + 1)))


class _Labelled(NamedTuple):
    images: np.ndarray
    labels: np.ndarray | None


def array_splits(
    name: str, image_size: int = 32, train_split: str = "train", eval_split: str = "test", eval_fraction: float = 0.1
) -> Splits:
    """Open a .npy file (read as needed) or a .npz file (read at once).

    A .npz holds either the two arrays ``train_split`` and ``eval_split``, and labels in ``<split>_labels`` if it has
    any, or one array of images, and labels beside it in ``labels``.

    Args:
      name: The file.
      image_size: Side of the images in pixels.
      train_split: Name of the training array of a .npz.
      eval_split: Name of the held-out array of a .npz.
      eval_fraction: Share held out at random from a single array, in (0, 1).

    Returns:
      Both splits.

    Raises:
      UserError: The file is missing, damaged or pickled, its arrays are not images, or its labels do not fit them.
    """
    arrays = _load(name, (train_split, eval_split))
    known = [labels for _, labels in arrays.values() if labels is not None]
    class_names = _numbered_classes(known) if known else None

    def dataset(split: str, key: str, indices: np.ndarray | None = None) -> ArrayDataset:
        return ArrayDataset(
            f"{Path(name).name}/{split}", arrays[key].images, image_size, arrays[key].labels, class_names, indices
        )

    if train_split in arrays and eval_split in arrays:
        return Splits(dataset(train_split, train_split), dataset(eval_split, eval_split))
    (key,) = arrays
    train, evaluation = hold_out(len(arrays[key].images), eval_fraction, name=name)
    return Splits(dataset("train", key, train), dataset("eval", key, evaluation))


def _load(name: str, splits: tuple[str, str]) -> dict[str, _Labelled]:
    """Read and check the arrays of images in a file, each with its labels."""
    file = Path(name).expanduser()
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        found = "another file" if file.exists() else "a path that does not exist"
        raise UserError(
            f"config.data.name must be a .npy or .npz file, got {name!r}, {found}; "
            "save images with numpy.save or numpy.savez"
        )
    try:
        if file.suffix == ".npy":
            arrays, keys = {"images": np.lib.format.open_memmap(file, mode="r")}, {"images": None}
        else:
            # Opened here, because numpy leaves a damaged archive open.
            with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
                keys = _keys_of_labels(name, archive.files, splits)
                arrays = {key: np.asarray(archive[key]) for key in (*keys, *keys.values()) if key is not None}
    except UserError:
        raise
    except Exception as error:  # damaged archives raise a dozen unrelated types
        raise UserError(
            f"config.data.name={name!r} cannot be read ({one_line(error)}); "
            "save it again with numpy.save or numpy.savez"
        ) from error
    return {key: _checked(name, key, labels_key, arrays) for key, labels_key in keys.items()}


def _keys_of_labels(name: str, keys: Sequence[str], splits: tuple[str, str]) -> dict[str, str | None]:
    """Find the arrays of images in a .npz, each with the name of its labels."""
    if set(splits) <= set(keys):
        labels = {split: f"{split}_labels" for split in splits}
        missing = [key for key in labels.values() if key not in keys]
        if len(missing) == len(labels):
            return dict.fromkeys(splits)
        if missing:
            raise UserError(
                f"config.data.name={name!r} must have labels for both splits or for none, got no array {missing[0]!r} "
                f"among {sorted(keys)}; save both"
            )
        return labels
    images = [key for key in keys if key != "labels"]
    if len(images) == 1:
        return {images[0]: "labels" if "labels" in keys else None}
    raise UserError(
        f"config.data.name={name!r} must have the arrays {splits[0]!r} and {splits[1]!r}, or a single one, got "
        f"{sorted(keys)}; set config.data.train_split and config.data.eval_split to two of them"
    )


def _checked(name: str, key: str, labels_key: str | None, arrays: dict[str, np.ndarray]) -> _Labelled:
    _check_images(name, key, arrays[key])
    if labels_key is None:
        return _Labelled(arrays[key], None)
    _check_labels(name, labels_key, arrays[labels_key], len(arrays[key]))
    return _Labelled(arrays[key], arrays[labels_key].astype(np.int32))


def _check_images(name: str, key: str, images: np.ndarray) -> None:
    is_images = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if images.dtype == np.uint8 and is_images and images.size:
        return
    hint = "convert and save it again"
    if images.ndim == 4 and images.shape[1] in (1, 3):
        hint = "move the channels to the end with numpy.moveaxis(images, 1, -1)"
    raise UserError(
        f"config.data.name={name!r}: array {key!r} must be {_ALLOWED}, got {images.dtype} of shape "
        f"{list(images.shape)}; {hint}"
    )


def _check_labels(name: str, key: str, labels: np.ndarray, num_images: int) -> None:
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"config.data.name={name!r}: array {key!r} must be integers of shape [{num_images}], one for each image, "
            f"got {labels.dtype} of shape {list(labels.shape)}; save it again, or leave it out"
        )
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise UserError(
            f"config.data.name={name!r}: array {key!r} must be class numbers from 0 to {_MOST_CLASSES - 1}, got "
            f"{labels.min()} to {labels.max()}; number the classes from 0"
        )
