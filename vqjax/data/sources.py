"""Registry of data sources: a name and a function that opens the splits.

Adding a source takes a file with such a function and a line in ``SOURCES``. The arguments of the function, with their
types and defaults, are the fields of the config's group ``data`` that the source reads.
"""

import dataclasses
import inspect
import typing
from pathlib import Path

from ml_collections import ConfigDict

from vqjax.data.arrays import array_splits
from vqjax.data.clips import ClipPlan, check_fps
from vqjax.data.dataset import Splits
from vqjax.data.duplicates import report_duplicates
from vqjax.data.image_folder import image_folder_splits
from vqjax.data.images import check_channels, height_and_width
from vqjax.data.panning import panning_photo_splits
from vqjax.data.photos import photo_splits
from vqjax.data.shapes import moving_shape_splits
from vqjax.data.tfds import tfds_splits
from vqjax.data.tfds_video import tfds_video_splits
from vqjax.data.tokens import token_splits
from vqjax.data.video_arrays import video_array_splits
from vqjax.data.video_folder import video_folder_splits
from vqjax.errors import UserError, did_you_mean
from vqjax.runtime.paths import is_unicode, local_path
from vqjax.runtime.signature import Call, Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feeding:
    """Fields of the group ``data`` besides the arguments of its source."""

    flip: bool = False  # random horizontal flips
    crop_padding: int | None = None  # pixels of reflection padding before a random crop
    resident_limit_mb: int = 1024  # datasets up to this size live on the device, others are streamed

    def __post_init__(self) -> None:
        for name, least in (("crop_padding", 1), ("resident_limit_mb", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}.")


SOURCES = Registry(
    {
        "tfds": tfds_splits,
        "photos": photo_splits,
        "image_folder": image_folder_splits,
        "arrays": array_splits,
        "panning_photos": panning_photo_splits,
        "moving_shapes": moving_shape_splits,
        "video_folder": video_folder_splits,
        "video_arrays": video_array_splits,
        "tfds_video": tfds_video_splits,
        "tokens": token_splits,
    },
    key="source",
    shared=Call(Feeding),
)
"""The sources by name, and the group ``data`` of a config."""


def load_splits(data: ConfigDict) -> Splits:
    """Open the dataset that a config names, and log how many held-out images duplicate training images.

    Args:
      data: ``source``, a key of ``SOURCES``, and the arguments of that source; other fields are left alone.

    Returns:
      The training and the held-out examples, whose images or frames have the height and width of ``image_size``.

    Raises:
      UserError: A field has a value that cannot be used.

    Example:
      >>> load_splits(ConfigDict({"source": "photos", "image_size": 32})).eval.name
      'photos/eval'
    """
    if data.source not in SOURCES:
        hint = did_you_mean(str(data.source), SOURCES)
        raise UserError(f"config.data.source must be a source of data, got {data.source!r}; {hint}")
    check_image_fields(data)
    open_splits = SOURCES[data.source]
    parameters = inspect.signature(open_splits).parameters
    if "name" in parameters and not data.name:
        raise UserError(
            f"config.data.name must be what config.data.source={data.source!r} reads, got {data.name!r}; "
            "set it to a dataset, a directory or a file."
        )
    splits = open_splits(**{name: data[name] for name in parameters if name in data})
    report_duplicates(splits)
    return splits


def check_image_fields(data: ConfigDict) -> None:
    """Refuse sizes, numbers of channels and numbers of frames that there cannot be, and augmentation of tokens.

    Args:
      data: The group ``data`` of a config.

    Raises:
      UserError: ``image_size``, ``channels``, ``crop_padding``, ``fps`` or a field of a
        :class:`vqjax.data.clips.ClipPlan` is out of range, or tokens are to be augmented.
    """
    if data.source == "tokens":
        for name in ("flip", "crop_padding"):
            if data.get(name):
                raise UserError(
                    f"config.data.{name} must be off for tokens, got {data[name]}; write mirrored and cropped images "
                    "with vqjax tokens --flip --crops=N."
                )
        return
    sides = height_and_width(data.image_size)
    check_channels(data.get("channels", 3))
    ClipPlan(**{field.name: data[field.name] for field in dataclasses.fields(ClipPlan) if field.name in data})
    check_fps(data.get("fps"))
    if (data.get("crop_padding") or 0) >= min(sides):
        raise UserError(
            f"config.data.crop_padding must be less than image_size={data.image_size}, got {data.crop_padding}."
        )


def with_absolute_path(data: ConfigDict) -> ConfigDict:
    """Return the group ``data`` with an absolute path, which stays valid in a different working directory.

    Args:
      data: ``source`` and its arguments.

    Raises:
      UserError: The path is a URL, is not UTF-8, or cannot be reached.

    Example:
      >>> data = ConfigDict({"source": "arrays", "name": "images.npz"})
      >>> Path(with_absolute_path(data).name).is_absolute()
      True
    """
    name = inspect.signature(SOURCES[data.source]).parameters.get("name")
    if name is None or not data.name or Path not in typing.get_args(name.annotation):
        return data
    path = str(local_path(data.name, "config.data.name").absolute())
    if not is_unicode(path):
        raise UserError(f"config.data.name must be a path in UTF-8, got {path!r}; rename it, or make a link to it.")
    return ConfigDict({**data, "name": path})
