"""`arrays`: images that already are NumPy arrays, in a .npy or .npz file."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Splits
from vqjax.data.images import resize_and_center_crop
from vqjax.errors import UserError

_ALLOWED = "uint8 of shape [images, height, width, 3], or grayscale without the 3 or with 1 instead"


class ArrayDataset:
    """Images of one array, an `ImageDataset`.

    Args:
        name: what reports call the images.
        images: uint8 [images, height, width, 3], [images, height, width, 1] or [images, height, width].
        image_size: the side of the images in pixels; others are resized and center-cropped.
        indices: which of the images, in which order; all of them if None.

    Example:
        >>> ArrayDataset("digits", np.zeros((5, 28, 28), np.uint8), image_size=32)[0].shape
        (32, 32, 3)
    """

    def __init__(
        self,
        name: str,
        images: UInt8[np.ndarray, "images height width *channels"],
        image_size: int,
        indices: Shaped[np.ndarray, " chosen"] | None = None,
    ):
        self.name = name
        self._images = images
        self._image_size = image_size
        self._indices = np.arange(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        image = self._images[self._indices[index]]
        rgb = np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))
        if image.shape[:2] == (self._image_size, self._image_size):
            return np.array(rgb)
        return resize_and_center_crop(Image.fromarray(np.ascontiguousarray(rgb)), self._image_size)


def array_splits(
    name: str, image_size: int = 32, train_split: str = "train", eval_split: str = "test", eval_fraction: float = 0.1
) -> Splits:
    """Opens a .npy file (read as needed) or a .npz file (read at once).

    Args:
        path: the file. A .npz either has the arrays `train_split` and `eval_split`, or a single array.
        image_size: the side of the images in pixels.
        train_split: the training array of a .npz.
        eval_split: the held-out array of a .npz.
        eval_fraction: the share held out at random from a single array.

    Returns:
        both splits.

    Raises:
        UserError: the file is missing, damaged, pickled, or its arrays are not images.
    """
    path = name
    arrays = _load(path, (train_split, eval_split))
    for key, images in arrays.items():
        _check_images(path, key, images)
    file_name = Path(path).name
    if set(arrays) == {train_split, eval_split}:
        train, heldout = (
            ArrayDataset(f"{file_name}/{split}", arrays[split], image_size) for split in (train_split, eval_split)
        )
        return Splits(train, heldout)
    (images,) = arrays.values()
    train_indices, heldout_indices = hold_out(len(images), eval_fraction, name=path)
    return Splits(
        ArrayDataset(f"{file_name}/train", images, image_size, train_indices),
        ArrayDataset(f"{file_name}/heldout", images, image_size, heldout_indices),
    )


def _load(path: str, splits: tuple[str, str]) -> dict[str, np.ndarray]:
    file = Path(path).expanduser()
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        problem = "is not a .npy or .npz file" if file.exists() else "does not exist"
        raise UserError(f"config.data.name={path!r} {problem}; save images with numpy.save or numpy.savez")
    try:
        if file.suffix == ".npy":
            return {"images": np.lib.format.open_memmap(file, mode="r")}
        # Opened here, because numpy leaves a damaged archive open.
        with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in _wanted_keys(path, archive.files, splits)}
    except UserError:
        raise
    except Exception as error:  # damaged archives raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"config.data.name={path!r} cannot be read ({reason}); save it again with numpy.save or numpy.savez"
        ) from error


def _wanted_keys(path: str, keys: list[str], splits: tuple[str, str]) -> list[str]:
    if set(splits) <= set(keys):
        return list(splits)
    if len(keys) == 1:
        return keys
    raise UserError(
        f"config.data.name={path!r} has the arrays {sorted(keys)}, not {splits[0]!r} and {splits[1]!r}; "
        "set config.data.train_split and config.data.eval_split to two of them"
    )


def _check_images(path: str, key: str, images: np.ndarray) -> None:
    is_images = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if images.dtype == np.uint8 and is_images and images.size:
        return
    hint = "convert and save it again"
    if images.ndim == 4 and images.shape[1] in (1, 3):
        hint = "move the channels to the end with numpy.moveaxis(images, 1, -1)"
    raise UserError(
        f"config.data.name={path!r}: array {key!r} is {images.dtype} of shape {list(images.shape)}; "
        f"allowed is {_ALLOWED}; {hint}"
    )
