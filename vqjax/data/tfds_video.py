"""Source ``tfds_video``: video datasets of tensorflow-datasets as array_record files, read without TensorFlow."""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from jaxtyping import Int64
from tqdm import tqdm

from vqjax.data.clips import ClipPlan
from vqjax.data.crops import Crop, CropName, RandomCropName, same_for_all_frames
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, check_channels, height_and_width
from vqjax.data.reading import READING_THREADS
from vqjax.data.tfds import class_names_of, open_split, prepared_builder
from vqjax.errors import UserError
from vqjax.runtime.cache import user_cache
from vqjax.runtime.files import atomic_file

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_LANCZOS = Crop()
_CHUNK = 16
_VIDEOS_WORTH_A_PROGRESS_BAR = 1000


class TfdsVideos:
    """Clips of one split of a dataset, an :class:`vqjax.data.ImageDataset`; labelled if ``label`` is a class.

    Args:
      builder: A dataset prepared as array_record.
      split: A split of it, such as ``"train"`` or ``"train[:10%]"``.
      image_size: Height and width of the frames in pixels, or one number for both.
      plan: The frames that are clips.
      feature: Name of the feature that holds the frames.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: What is taken of frames of other sizes, the same part of all frames of a clip.

    Raises:
      UserError: There is no such split, or no video in it is long enough.
    """

    def __init__(
        self,
        builder: "tfds.core.DatasetBuilder",
        split: str,
        image_size: Size,
        plan: ClipPlan,
        feature: str = "video",
        channels: int = 3,
        crop: Crop = _LANCZOS,
    ):
        from tensorflow_datasets.core.decode import DeserializeMethod

        # tfds cannot skip the decoding of frames, and would decode all of a video.
        self._source = open_split(builder, split, deserialize_method=DeserializeMethod.RAW_BYTES)
        self.name, self.class_names = f"{builder.name}/{split}", class_names_of(builder)
        self._size, self._channels, self._feature = height_and_width(image_size), channels, feature
        self._crop, self._plan = crop, plan
        self.is_random = crop.random is not None or plan.random_start
        self._lengths = self._known_lengths(builder)
        self._clips = plan.clips(self._lengths)
        reasons = list(filter(None, map(plan.too_short, self._lengths.tolist())))
        if reasons:
            logging.warning("%s: skipped %d short videos of %d", self.name, len(reasons), len(self._lengths))
        if not len(self._clips):
            raise UserError(f"{self.name}: its videos have {reasons[0]}; set config.data.frames to fewer.")

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return a clip with a random start and crop, if this dataset has random ones and there is a generator."""
        number, start = self._clips[index].tolist()
        features = _features(self._source[number])
        start = self._plan.start(start, int(self._lengths[number]), generator)
        again, frames = same_for_all_frames(generator), []
        for content in (features[self._feature].bytes_list.value[i] for i in self._plan.numbers(start)):
            options = {"path": self.origin(index), "channels": self._channels}
            frames.append(self._crop.decode(io.BytesIO(content), self._size, again(), **options))
        example = {"video": np.stack(frames)}
        if self.class_names is None:
            return example
        return example | {"label": np.int32(features["label"].int64_list.value[0])}

    def origin(self, index: int) -> str:
        """Return the split, the number of a video in it, and the frames that a clip comes from."""
        number, start = self._clips[index].tolist()
        return f"{self.name}[{number}], frames {start} to {start + self._plan.span - 1}"

    def _known_lengths(self, builder: "tfds.core.DatasetBuilder") -> Int64[np.ndarray, " videos"]:
        """The frames of each video: those that an earlier start has counted, or counted now."""
        total = len(self._source)
        key = repr((str(builder.data_path), self.name, self._feature, total, builder.info.dataset_size))
        cache = user_cache("tfds_videos")
        file = None if cache is None else cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        lengths = _read(file)
        if lengths is not None and lengths.shape == (total,) and lengths.dtype == np.int64:
            return lengths
        lengths = np.array(self._counted(total), np.int64)
        if file is not None:
            with contextlib.suppress(OSError), atomic_file(file) as content:
                np.save(content, lengths)
        return lengths

    def _counted(self, total: int) -> list[int]:
        def count(numbers: tuple[int, ...]) -> list[int]:
            records = self._source.__getitems__(list(numbers))
            return [len(_features(record)[self._feature].bytes_list.value) for record in records]

        with ThreadPoolExecutor(READING_THREADS) as threads:
            chunks = threads.map(count, itertools.batched(range(total), _CHUNK))
            # None shows the bar on a terminal only.
            hide_bar = None if total >= _VIDEOS_WORTH_A_PROGRESS_BAR else True
            chunks = tqdm(chunks, f"counting frames of {self.name}", -(-total // _CHUNK), disable=hide_bar)
            return list(itertools.chain.from_iterable(chunks))


def tfds_video_splits(
    name: str,
    image_size: Size = 64,
    train_split: str = "train",
    eval_split: str = "test",
    feature: str = "video",
    channels: int = 3,
    crop: CropName = "lanczos",
    random_crop: RandomCropName | None = None,
    frames: int = 17,
    frame_stride: int = 1,
    clip_stride: int | None = None,
    random_start: bool = False,
) -> Splits:
    """Open a video dataset of the tensorflow-datasets catalog, or one prepared in the same layout.

    The data directory is ``TFDS_DATA_DIR``, or the default of tensorflow-datasets. A dataset that is not there yet is
    prepared if TensorFlow is installed, which preparing (but not reading) needs. The first start reads all of a split
    to count the frames of its videos.

    Args:
      name: Name, such as ``"ucf101"``, or with configuration and version.
      image_size: Height and width of the frames in pixels, or one number for both.
      train_split: The split to train on.
      eval_split: The split to evaluate on.
      feature: The feature that holds the frames, such as ``"image_main"`` of ``bair_robot_pushing_small``.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: How frames of other sizes are scaled and cropped: ``center`` of :class:`vqjax.data.crops.Crop`.
      random_crop: What is taken of training clips instead, anew each time: ``random`` of it.
      frames: Frames of a clip.
      frame_stride: Take one of so many frames.
      clip_stride: Frames from the beginning of a clip to that of the next; None for clips that do not overlap.
      random_start: Let training clips begin anywhere in their video, anew each time.

    Returns:
      Both splits.

    Raises:
      UserError: The dataset or a split is unknown, has no such videos, or is not prepared as array_record.
    """
    check_channels(channels)
    plans = [ClipPlan(frames, frame_stride, clip_stride, is_random) for is_random in (random_start, False)]
    allow_video_features()
    builder = prepared_builder(name)
    _check_video_feature(name, builder, feature)
    return Splits(
        TfdsVideos(builder, train_split, image_size, plans[0], feature, channels, Crop(crop, random_crop)),
        TfdsVideos(builder, eval_split, image_size, plans[1], feature, channels, Crop(crop)),
    )


def allow_video_features() -> None:
    """Let tensorflow-datasets describe videos where TensorFlow is not installed."""
    from tensorflow_datasets.core.features import video_feature

    if importlib.util.find_spec("tensorflow") is None:
        # The one thing that the description of a video takes of TensorFlow.
        video_feature.tf = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))


def _check_video_feature(name: str, builder: "tfds.core.DatasetBuilder", feature: str) -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    found = dict(features.items()).get(feature)
    # A sequence of images among the features, or an image of features that are a sequence as a whole.
    if not isinstance(features, tfds.features.Sequence):
        found = getattr(found, "feature", None)
    if not isinstance(found, tfds.features.Image) or found.np_dtype != np.uint8:
        raise UserError(
            f"config.data.feature must be a video of 8 bits in {name!r}, got {feature!r}; choose among its features "
            f"({', '.join(sorted(features.keys()))}), or another dataset."
        )


def _features(record: bytes) -> Any:
    """The stored features of a record by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _read(file: Path | None) -> np.ndarray | None:
    """An array of the cache; None if there is no usable one."""
    try:
        return None if file is None else np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
