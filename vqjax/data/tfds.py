"""Source ``tfds``: image datasets of tensorflow-datasets as array_record files, read without TensorFlow."""

import difflib
import importlib.util
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from vqjax.data.crops import Crop, CropName, RandomCropName
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, check_channels, height_and_width
from vqjax.errors import UserError, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_LANCZOS = Crop()


class TfdsImages:
    """One split of a dataset, an :class:`vqjax.data.ImageDataset`; labelled if the feature ``label`` is a class.

    Args:
      builder: A dataset prepared as array_record, with an ``image`` feature.
      split: A split of it, such as ``"train"`` or ``"train[:10%]"``.
      image_size: Height and width of the images in pixels, or one number for both.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: What is taken of images of other sizes.

    Raises:
      UserError: There is no such split, or it is empty.
    """

    def __init__(
        self,
        builder: "tfds.core.DatasetBuilder",
        split: str,
        image_size: Size,
        channels: int = 3,
        crop: Crop = _LANCZOS,
    ):
        import tensorflow_datasets as tfds

        # The encoded bytes, because tfds would decode with whichever library happens to be installed.
        self._source = open_split(builder, split, decoders={"image": tfds.decode.SkipDecoding()})
        self.name, self._path = f"{builder.name}/{split}", str(builder.data_path)
        self.class_names = class_names_of(builder)
        self._size, self._channels = height_and_width(image_size), channels
        self._crop, self.is_random = crop, crop.random is not None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return an example with a random crop, if this dataset has random ones and there is a generator."""
        return self._decode(index, self._source[index], generator)

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Read many examples; fetching the records together is nearly twice as fast as one by one."""
        records = self._source.__getitems__(list(indices))
        return [self._decode(index, record) for index, record in zip(indices, records, strict=True)]

    def stamp(self) -> str | None:
        """Return what the images depend on; None for files that are not on this machine."""
        try:
            files = sorted(
                (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(self._path)
            )
        except OSError:
            return None
        return repr((self._path, files, self.name, self._size, self._channels, self._crop))

    def origin(self, index: int) -> str:
        """Return the split and the number of an example in it."""
        return f"{self.name}[{index}]"

    def _decode(self, index: int, record: dict, generator: np.random.Generator | None = None) -> Example:
        file, path = io.BytesIO(record["image"]), self.origin(index)
        image = self._crop.decode(file, self._size, generator, path=path, channels=self._channels)
        return {"image": image} if self.class_names is None else {"image": image, "label": np.int32(record["label"])}


def tfds_splits(
    name: str,
    image_size: Size = 32,
    train_split: str = "train",
    eval_split: str = "test",
    channels: int = 3,
    crop: CropName = "lanczos",
    random_crop: RandomCropName | None = None,
) -> Splits:
    """Open a dataset of the tensorflow-datasets catalog, or one prepared in the same layout.

    The data directory is ``TFDS_DATA_DIR``, or the default of tensorflow-datasets. A dataset that is not there yet is
    prepared if TensorFlow is installed, which preparing (but not reading) needs.

    Args:
      name: Name, such as ``"cifar10"``, or with configuration and version ``"imagenet_resized/32x32:0.1.0"``.
      image_size: Height and width of the images in pixels, or one number for both.
      train_split: The split to train on.
      eval_split: The split to evaluate on.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: How images of other sizes are scaled and cropped: ``center`` of :class:`vqjax.data.crops.Crop`.
      random_crop: What is taken of training images instead, anew each time: ``random`` of it.

    Returns:
      Both splits.

    Raises:
      UserError: The dataset or a split is unknown, has no images, or is not prepared as array_record.
    """
    check_channels(channels)
    builder = prepared_builder(name)
    _check_image_feature(name, builder)
    return Splits(
        TfdsImages(builder, train_split, image_size, channels, Crop(crop, random_crop)),
        TfdsImages(builder, eval_split, image_size, channels, Crop(crop)),
    )


def open_split(builder: "tfds.core.DatasetBuilder", split: str, **options: Any) -> Any:
    """Open a split of a dataset for random access.

    Args:
      builder: A dataset prepared as array_record.
      split: A split of it, such as ``"train"`` or ``"train[:10%]"``.
      **options: How records are decoded: see ``as_data_source`` of the builder.

    Returns:
      A sequence of records, which also has ``__getitems__``.

    Raises:
      UserError: There is no such split, or it is empty.
    """
    allowed = ", ".join(repr(name) for name in builder.info.splits)
    try:
        return builder.as_data_source(split=split, **options)
    except ValueError as error:
        raise UserError(
            f"split {split!r} of tfds {builder.name} cannot be read ({one_line(error)}); set "
            f"config.data.train_split and config.data.eval_split to {allowed}, or a slice such as 'train[:90%]'."
        ) from error


def class_names_of(builder: "tfds.core.DatasetBuilder") -> tuple[str, ...] | None:
    """Return the classes of a dataset, if its feature ``label`` is a class.

    Args:
      builder: The dataset.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    is_labelled = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    return tuple(features["label"].names) if is_labelled else None


def prepared_builder(name: str) -> "tfds.core.DatasetBuilder":
    """Open a dataset, and prepare it first if it is not there and can be prepared.

    Args:
      name: Name, with configuration and version if need be.

    Raises:
      UserError: The dataset is unknown, or not prepared as array_record.
    """
    import tensorflow_datasets as tfds

    # tfds reads the variable only once, when it is imported; passing it on makes a later change count as well.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    data_dir = data_dir and os.path.expanduser(data_dir)
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"config.data.name={name!r} is not prepared in {builder.data_dir}; set TFDS_DATA_DIR to the "
                'directory that holds it, or pip install "vqjax[tfds-prepare]" to let this command prepare it.'
            )
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"config.data.name={name!r} is prepared as {builder.info.file_format.value} in {builder.data_dir}, which "
            "needs TensorFlow to read; prepare it in another TFDS_DATA_DIR by `tfds build --file_format=array_record`."
        )
    return builder


def _builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        nearest = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "its catalog lists the names."
        raise UserError(f"config.data.name={name!r} is not a tensorflow-datasets name; {hint}") from error
    except (AssertionError, ValueError) as error:  # a version, a configuration, or not a name at all
        raise UserError(
            f"config.data.name={name!r} cannot be opened by tensorflow-datasets ({one_line(error)}); "
            "correct the name, or leave out configuration and version to get the default ones."
        ) from error
    except (ImportError, OSError) as error:  # a storage that needs a package, or cannot be reached
        raise UserError(
            f"TFDS_DATA_DIR must be a directory that can be read, got {data_dir!r} ({one_line(error)}); copy the data "
            "to a local directory."
        ) from error


def _check_image_feature(name: str, builder: "tfds.core.DatasetBuilder") -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    is_image = "image" in features and isinstance(features["image"], tfds.features.Image)
    if not is_image or features["image"].np_dtype != np.uint8:
        raise UserError(
            f"config.data.name={name!r} has no 8-bit feature called 'image' (its features: {', '.join(features)}); "
            "choose an image dataset."
        )


def _is_prepared(builder: "tfds.core.DatasetBuilder") -> bool:
    # tfds logs a warning for every dataset that is not prepared; the UserError says it better.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return builder.is_prepared()
    finally:
        logging.set_verbosity(verbosity)
