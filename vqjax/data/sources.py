"""From the `data` section of a config to the images."""

import difflib
import inspect

from ml_collections import ConfigDict

from vqjax.data.arrays import array_splits
from vqjax.data.dataset import Splits
from vqjax.data.image_folder import image_folder_splits
from vqjax.data.photos import photo_splits
from vqjax.data.tfds import tfds_splits
from vqjax.errors import UserError

SOURCES = {"tfds": tfds_splits, "photos": photo_splits, "image_folder": image_folder_splits, "arrays": array_splits}


def load_splits(data: ConfigDict) -> Splits:
    """Opens the images that a config asks for.

    Args:
        data: `source`, one of "tfds", "photos", "image_folder" and "arrays", and what that source needs of
            `name`, `image_size`, `train_split`, `eval_split` and `eval_fraction`.

    Returns:
        the training and the held-out images, all square with side `image_size`.

    Raises:
        UserError: a field has a value that cannot be used.

    Example:
        >>> load_splits(ConfigDict({"source": "photos", "image_size": 32})).heldout.name
        'photos/heldout'
    """
    if data.source not in SOURCES:
        allowed = ", ".join(map(repr, SOURCES))
        nearest = difflib.get_close_matches(str(data.source), SOURCES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"config.data.source={data.source!r} is not a source of images; use one of {allowed}{hint}")
    if data.image_size < 1:
        raise UserError(
            f"config.data.image_size={data.image_size} must be at least 1; set the side of the images in pixels"
        )
    if data.source != "photos" and not data.name:
        raise UserError(f"config.data.name is empty; set it to what config.data.source={data.source!r} shall read")
    open_splits = SOURCES[data.source]
    return open_splits(**{name: data[name] for name in inspect.signature(open_splits).parameters if name in data})
