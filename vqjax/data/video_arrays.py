"""Source ``video_arrays``: clips of videos that already are NumPy arrays, in a .npy or .npz file."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32, Shaped, UInt8, UInt64

from vqjax.data.arrays import digest_of_pixels, divided_arrays, fitted, load_arrays
from vqjax.data.clips import ClipPlan
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, height_and_width
from vqjax.errors import UserError

_AXES = ("videos", "frames", "height", "width")


class VideoArray:
    """Clips of the videos of one array, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      videos: ``[videos, frames, height, width, channels]`` with 1, 3 or 4 channels, or without their axis.
      image_size: Height and width of the frames in pixels, or one number for both; others are resized and
        center-cropped.
      plan: The frames that are clips.
      labels: Class of each video, in [0, number of classes); None if the videos have none.
      class_names: The class that each label stands for; None if the videos have none.
      indices: Indices of the videos to take, in this order; all of them if None.
      channels: Channels of the examples: gray becomes RGB and RGB gray, while four stay four.
      array_name: Name of the array, for the origins of the examples.

    Raises:
      UserError: The videos are too short for a clip.

    Example:
      >>> videos = np.zeros((2, 40, 16, 16), np.uint8)
      >>> clips = VideoArray("robots", videos, image_size=8, plan=ClipPlan(frames=17))
      >>> len(clips), clips[3]["video"].shape, clips.origin(3)
      (4, (17, 8, 8, 3), 'videos[1], frames 17 to 33')
    """

    def __init__(
        self,
        name: str,
        videos: UInt8[np.ndarray, "videos frames height width *channels"],
        image_size: Size,
        plan: ClipPlan,
        labels: Int32[np.ndarray, " videos"] | None = None,
        class_names: tuple[str, ...] | None = None,
        indices: Shaped[np.ndarray, " chosen"] | None = None,
        *,
        channels: int = 3,
        array_name: str = "videos",
    ):
        self.name, self.class_names = name, class_names
        self._videos, self._labels, self._plan = videos, labels, plan
        self._size, self._channels = height_and_width(image_size), channels
        self._array_name, self.is_random = array_name, plan.random_start
        length = videos.shape[1]
        if plan.too_short(length):
            raise UserError(f"{name}: its videos have {plan.too_short(length)}; set config.data.frames to fewer.")
        rows = np.arange(len(videos)) if indices is None else indices
        self._clips = [(int(rows[i]), start) for i, start in plan.clips([length] * len(rows)).tolist()]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return a clip that begins anywhere, if the plan has random starts and there is a generator."""
        row, start = self._clips[index]
        start = self._plan.start(start, self._videos.shape[1], generator)
        frames = [fitted(frame, self._size, self._channels) for frame in self._frames(row, start)]
        example = {"video": np.stack(frames)}
        return example if self._labels is None else example | {"label": self._labels[row]}

    def origin(self, index: int) -> str:
        """Return the row of the array, and the frames in it, that a clip comes from."""
        row, start = self._clips[index]
        return f"{self._array_name}[{row}], frames {start} to {start + self._plan.span - 1}"

    def content(self, index: int) -> bytes:
        """Return the pixels of a clip before they are resized."""
        return self._frames(*self._clips[index]).tobytes()

    def digests(self) -> UInt64[np.ndarray, " clips"]:
        """Return checksums of the first and last rows of pixels of each clip."""
        return np.array([digest_of_pixels(self._frames(*clip)) for clip in self._clips], np.uint64)

    def _frames(self, row: int, start: int) -> UInt8[np.ndarray, "frames height width *channels"]:
        return self._videos[row, start : start + self._plan.span : self._plan.frame_stride]


def video_array_splits(
    name: str | Path,
    image_size: Size = 64,
    train_split: str = "train",
    eval_split: str = "test",
    eval_fraction: float = 0.1,
    channels: int = 3,
    frames: int = 17,
    frame_stride: int = 1,
    clip_stride: int | None = None,
    random_start: bool = False,
) -> Splits:
    """Open a .npy file (read as needed) or a .npz file (read at once) of videos.

    A .npz holds either the two arrays ``train_split`` and ``eval_split``, and labels in ``<split>_labels`` if it has
    any, or one array of videos, and its labels in ``labels``.

    Args:
      name: The file.
      image_size: Height and width of the frames in pixels, or one number for both.
      train_split: Name of the training array of a .npz.
      eval_split: Name of the held-out array of a .npz.
      eval_fraction: Share of the videos held out at random from a single array, in (0, 1).
      channels: 1 for gray, 3 for RGB, 4 for arrays of four channels.
      frames: Frames of a clip.
      frame_stride: Take one of so many frames.
      clip_stride: Frames from the beginning of a clip to that of the next; None for clips that do not overlap.
      random_start: Let training clips begin anywhere in their video, anew each time.

    Returns:
      Both splits.

    Raises:
      UserError: The file is missing, damaged or pickled, its arrays are not videos or too short, or its labels do not
        fit them.
    """
    arrays = load_arrays(name, (train_split, eval_split), channels, _AXES)
    parts = divided_arrays(name, arrays, (train_split, eval_split), eval_fraction)
    plans = [ClipPlan(frames, frame_stride, clip_stride, is_random) for is_random in (random_start, False)]
    return Splits(
        *(
            VideoArray(
                part.name,
                part.pixels,
                image_size,
                plan,
                part.labels,
                part.class_names,
                part.indices,
                channels=channels,
                array_name=part.array_name,
            )
            for part, plan in zip(parts, plans, strict=True)
        )
    )
