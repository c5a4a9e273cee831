"""Registry of data sources: a name and a function that opens the splits.

Adding a source takes a file with such a function and a line in ``SOURCES``. The arguments of the function, with their
types and defaults, are the fields of the config's group ``data`` that the source reads.
"""

import inspect

from ml_collections import ConfigDict

from vqjax.data.arrays import array_splits
from vqjax.data.dataset import Splits
from vqjax.data.image_folder import image_folder_splits
from vqjax.data.photos import photo_splits
from vqjax.data.tfds import tfds_splits
from vqjax.errors import UserError, did_you_mean

SOURCES = {
    "tfds": tfds_splits,
    "photos": photo_splits,
    "image_folder": image_folder_splits,
    "arrays": array_splits,
}


def load_splits(data: ConfigDict) -> Splits:
    """Open the dataset that a config names.

    Args:
      data: ``source``, a key of ``SOURCES``, and the arguments of that source; other fields are left alone.

    Returns:
      The training and the held-out examples, whose images are square with side ``image_size``.

    Raises:
      UserError: A field has a value that cannot be used.

    Example:
      >>> load_splits(ConfigDict({"source": "photos", "image_size": 32})).eval.name
      'photos/eval'
    """
    if data.source not in SOURCES:
        hint = did_you_mean(str(data.source), SOURCES)
        raise UserError(f"config.data.source must be a source of images, got {data.source!r}; {hint}")
    if data.image_size < 1:
        raise UserError(
            f"config.data.image_size must be at least 1, got {data.image_size}; "
            "set it to the side of the images in pixels"
        )
    open_splits = SOURCES[data.source]
    parameters = inspect.signature(open_splits).parameters
    if "name" in parameters and not data.name:
        raise UserError(
            f"config.data.name must be what config.data.source={data.source!r} reads, got {data.name!r}; "
            "set it to a dataset, a directory or a file"
        )
    return open_splits(**{name: data[name] for name in parameters if name in data})
