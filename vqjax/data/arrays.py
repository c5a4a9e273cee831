"""Source ``arrays``: images and labels that already are NumPy arrays, in a .npy or .npz file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8, UInt64
from PIL import Image

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Example, Splits
from vqjax.data.duplicates import DIGESTED_BYTES, digest
from vqjax.data.images import Size, check_channels, height_and_width, resize_and_center_crop, with_channels
from vqjax.errors import UserError, one_line
from vqjax.runtime.paths import local_path

_AXES = ("images", "height", "width")
_MOST_CLASSES = 2**20


class ArrayDataset:
    """Images of one array, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      images: ``[images, height, width, channels]`` with 1, 3 or 4 channels, or ``[images, height, width]``.
      image_size: Height and width of the images in pixels, or one number for both; others are resized and
        center-cropped.
      labels: Class of each image, in [0, number of classes); None if the images have none.
      class_names: The class that each label stands for; None names the classes by their numbers.
      indices: Indices of the images to take, in this order; all of them if None.
      channels: Channels of the examples: gray becomes RGB and RGB gray, while four stay four.
      array_name: Name of the array, for the origins of the examples.

    Raises:
      UserError: The images are not uint8 of such a shape, or the labels do not fit them.

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
        image_size: Size,
        labels: Int32[np.ndarray, " images"] | None = None,
        class_names: tuple[str, ...] | None = None,
        indices: Shaped[np.ndarray, " chosen"] | None = None,
        *,
        channels: int = 3,
        array_name: str = "images",
    ):
        # Lists become arrays, to be refused by name.
        images, labels = np.asanyarray(images), None if labels is None else np.asarray(labels)
        check_pixels(name, images, channels)
        if labels is not None:
            check_labels(f"{name}: labels", labels, len(images))
        self.name = name
        if labels is not None and class_names is None:
            class_names = numbered_classes([labels])
        if labels is not None and labels.max() >= len(class_names):
            raise UserError(f"{name}: labels must be below {len(class_names)}, the classes named, got {labels.max()}.")
        self.class_names = class_names
        self._images, self._labels = images, None if labels is None else labels.astype(np.int32)
        self._size, self._channels = height_and_width(image_size), channels
        self._indices = np.arange(len(images)) if indices is None else indices
        self._array_name = array_name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        row = self._indices[index]
        image = fitted(self._images[row], self._size, self._channels)
        return {"image": image} if self._labels is None else {"image": image, "label": self._labels[row]}

    def origin(self, index: int) -> str:
        """Return the row of the array that an example comes from."""
        return f"{self._array_name}[{self._indices[index]}]"

    def content(self, index: int) -> bytes:
        """Return the pixels of an example before they are resized."""
        return self._images[self._indices[index]].tobytes()

    def digests(self) -> UInt64[np.ndarray, " chosen"]:
        """Return checksums of the first and last rows of pixels of each image."""
        return np.array([digest_of_pixels(self._images[row]) for row in self._indices], np.uint64)


def digest_of_pixels(image: UInt8[np.ndarray, "*axes"]) -> int:
    """Return a checksum of the first and last bytes of an image or a clip.

    Args:
      image: Its pixels.

    Example:
      >>> digest_of_pixels(np.zeros((8, 8, 3), np.uint8)) == digest_of_pixels(np.ones((8, 8, 3), np.uint8))
      False
    """
    flat = image.reshape(-1)
    return digest(flat[:DIGESTED_BYTES].tobytes(), flat[-DIGESTED_BYTES:].tobytes(), flat.size)


def fitted(
    image: UInt8[np.ndarray, "height width *channels"], size: tuple[int, int], channels: int
) -> UInt8[np.ndarray, "_ _ {channels}"]:
    """Bring an image to a size and to a number of channels.

    Args:
      image: An image of 1, 3 or 4 channels, or of none, which is gray.
      size: Height and width of the result in pixels; other images are resized and center-cropped.
      channels: Channels of the result, 4 if the image has 4.

    Example:
      >>> fitted(np.zeros((28, 28), np.uint8), (32, 32), channels=3).shape
      (32, 32, 3)
    """
    image = image if image.ndim == 3 else image[..., None]
    if image.shape[-1] == 4:
        # What the fourth channel means is not known, so that it must not weigh the others.
        parts = [resize_and_center_crop(Image.fromarray(image[..., i]), size) for i in range(4)]
        return np.concatenate(parts, axis=-1)
    if image.shape == (*size, channels):
        return np.array(image)
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    return np.array(resize_and_center_crop(with_channels(picture, channels), size))


def numbered_classes(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Return the numbers of classes as names.

    Args:
      labels: Labels of all splits.

    Example:
      >>> numbered_classes([np.array([0, 2]), np.array([1])])
      ('0', '1', '2')
    """
    return tuple(map(str, range(max(int(some.max()) for some in labels) + 1)))


class LabelledArray(NamedTuple):
    """Array of a file.

    Attributes:
      pixels: Images or videos, along the first axis.
      labels: Class of each; None if the file has none.
    """

    pixels: np.ndarray
    labels: np.ndarray | None


def array_splits(
    name: str | Path,
    image_size: Size = 32,
    train_split: str = "train",
    eval_split: str = "test",
    eval_fraction: float = 0.1,
    channels: int = 3,
) -> Splits:
    """Open a .npy file (read as needed) or a .npz file (read at once).

    A .npz holds either the two arrays ``train_split`` and ``eval_split``, and labels in ``<split>_labels`` if it has
    any, or one array of images, and its labels in ``labels``.

    Args:
      name: The file.
      image_size: Height and width of the images in pixels, or one number for both.
      train_split: Name of the training array of a .npz.
      eval_split: Name of the held-out array of a .npz.
      eval_fraction: Share held out at random from a single array, in (0, 1).
      channels: 1 for gray, 3 for RGB, 4 for arrays of four channels.

    Returns:
      Both splits.

    Raises:
      UserError: The file is missing, damaged or pickled, its arrays are not images, or its labels do not fit them.
    """
    arrays = load_arrays(name, (train_split, eval_split), channels)
    parts = divided_arrays(name, arrays, (train_split, eval_split), eval_fraction)
    return Splits(
        *(
            ArrayDataset(
                part.name,
                part.pixels,
                image_size,
                part.labels,
                part.class_names,
                part.indices,
                channels=channels,
                array_name=part.array_name,
            )
            for part in parts
        )
    )


class ArrayPart(NamedTuple):
    """The images or videos of a split, as arguments of a dataset.

    Attributes:
      name: Name in reports.
      pixels: Array of them, and of others.
      labels: Class of each in the array; None if there are none.
      class_names: The class that each label stands for; None if there are no labels.
      indices: Rows of the array to take; None for all.
      array_name: Name of the array.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    indices: np.ndarray | None
    array_name: str


def divided_arrays(
    name: str | Path, arrays: Mapping[str, LabelledArray], splits: tuple[str, str], eval_fraction: float
) -> tuple[ArrayPart, ArrayPart]:
    """Return what of the arrays of a file is for training, and what is held out.

    Args:
      name: The file.
      arrays: Its arrays: those of both splits, or a single one.
      splits: Names of the training and of the held-out array.
      eval_fraction: Share held out at random from a single array, in (0, 1).

    Raises:
      UserError: A single array cannot be divided.
    """
    known = [labels for _, labels in arrays.values() if labels is not None]
    class_names, file_name = numbered_classes(known) if known else None, Path(name).name

    def part(split: str, key: str, indices: np.ndarray | None = None) -> ArrayPart:
        return ArrayPart(f"{file_name}/{split}", *arrays[key], class_names, indices, key)

    if set(splits) <= set(arrays):
        train, evaluation = splits
        return part(train, train), part(evaluation, evaluation)
    (key,) = arrays
    train, evaluation = hold_out(len(arrays[key].pixels), eval_fraction, name=str(name))
    return part("train", key, train), part("eval", key, evaluation)


def load_arrays(
    name: str | Path, splits: tuple[str, str], channels: int, axes: tuple[str, ...] = _AXES
) -> dict[str, LabelledArray]:
    """Read and check the arrays of images or videos in a file, each with its labels.

    Args:
      name: The file, .npy (read as needed) or .npz (read at once).
      splits: Names of the training and of the held-out array of a .npz.
      channels: Channels of the examples, as for :func:`check_pixels`.
      axes: Names of the axes in front of that of the channels; the first one is the name of the array of a .npy.

    Returns:
      The arrays by name, those of the splits or a single one.

    Raises:
      UserError: The file is missing, damaged or pickled, its arrays are not images or videos, or labels do not fit.
    """
    file, name = local_path(name, "config.data.name"), str(name)
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        found = "another file" if file.exists() else "a path that does not exist"
        raise UserError(
            f"config.data.name must be a .npy or .npz file, got {name!r}, {found}; "
            "save images with numpy.save or numpy.savez."
        )
    try:
        if file.suffix == ".npy":
            arrays, keys = {axes[0]: np.lib.format.open_memmap(file, mode="r")}, {axes[0]: None}
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
            "save it again with numpy.save or numpy.savez."
        ) from error
    return {key: _checked(name, key, labels_key, arrays, channels, axes) for key, labels_key in keys.items()}


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
                f"among {sorted(keys)}; save both."
            )
        return labels
    images = [key for key in keys if key != "labels"]
    if len(images) == 1:
        return {images[0]: "labels" if "labels" in keys else None}
    raise UserError(
        f"config.data.name={name!r} must have the arrays {splits[0]!r} and {splits[1]!r}, or a single one, got "
        f"{sorted(keys)}; set config.data.train_split and config.data.eval_split to two of them."
    )


def _checked(
    name: str,
    key: str,
    labels_key: str | None,
    arrays: Mapping[str, np.ndarray],
    channels: int,
    axes: tuple[str, ...],
) -> LabelledArray:
    check_pixels(f"config.data.name={name!r}: array {key!r}", arrays[key], channels, axes)
    if labels_key is None:
        return LabelledArray(arrays[key], None)
    check_labels(f"config.data.name={name!r}: array {labels_key!r}", arrays[labels_key], len(arrays[key]))
    return LabelledArray(arrays[key], arrays[labels_key].astype(np.int32))


def check_pixels(name: str, pixels: np.ndarray, channels: int, axes: tuple[str, ...] = _AXES) -> None:
    """Refuse arrays that are not images or videos.

    Args:
      name: Name of the array in messages.
      pixels: The array.
      channels: Channels of the examples; arrays of 4 are for examples of 4 alone.
      axes: Names of the axes in front of that of the channels.

    Raises:
      UserError: It is not uint8, empty, or of a different shape.
    """
    check_channels(channels)
    allowed = (4,) if channels == 4 else (1, 3)
    with_channels = pixels.ndim == len(axes) + 1
    is_known = (pixels.ndim == len(axes) and channels != 4) or (with_channels and pixels.shape[-1] in allowed)
    if pixels.dtype == np.uint8 and is_known and pixels.size:
        return
    hint = "convert and save it again"
    if np.issubdtype(pixels.dtype, np.floating):
        hint = f"convert pixels in [0, 1] with (255 * {axes[0]}).round().astype(numpy.uint8)"
    elif with_channels and pixels.shape[-1] == 4:
        hint = "set config.data.channels=4 to take all four, or leave the fourth out"
    elif with_channels and pixels.shape[-3] in (1, 3, 4):
        hint = f"move the channels to the end with numpy.moveaxis({axes[0]}, {len(axes) - 2}, -1)"
    shape = f"uint8 of shape [{', '.join(axes)}, "
    expected = f"{shape}4]" if channels == 4 else f"{shape}3], or grayscale without the 3 or with 1 instead"
    raise UserError(f"{name} must be {expected}, got {pixels.dtype} of shape {list(pixels.shape)}; {hint}.")


def check_labels(name: str, labels: np.ndarray, num_images: int) -> None:
    """Refuse labels that are not the class of each image or video.

    Args:
      name: Name of the labels in messages.
      labels: The labels.
      num_images: Number of images or videos.

    Raises:
      UserError: They are not integers, one for each, or out of range.
    """
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} must be integers of shape [{num_images}], one for each image, got {labels.dtype} of shape "
            f"{list(labels.shape)}; save it again, or leave it out."
        )
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise UserError(
            f"{name} must be class numbers from 0 to {_MOST_CLASSES - 1}, got {labels.min()} to {labels.max()}; "
            "number the classes from 0."
        )
