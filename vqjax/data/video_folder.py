"""Source ``video_folder``: video files and directories of frames, anywhere below a directory."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8, UInt64

from vqjax.data.clips import ClipPlan, check_fps
from vqjax.data.crops import Crop, CropName, RandomCropName, same_for_all_frames
from vqjax.data.dataset import Example, Splits, UnreadableImage
from vqjax.data.duplicates import digest
from vqjax.data.folder_index import FileKind, IndexedFile, index_folder, printable
from vqjax.data.folder_splits import FolderSplit, divided_folder, folder_of, report_unreadable
from vqjax.data.images import Size, check_channels, check_header, height_and_width, image_suffixes, with_channels
from vqjax.data.videos import FrameTimes, frame_times, read_frames, video_suffixes
from vqjax.errors import UserError

_UNTIMED = FrameTimes(0, 0.0, 0.0, True, False)


class VideoSource(NamedTuple):
    """A video, stored as one file or as a directory of frames.

    Attributes:
      path: The file or directory, relative to that of all.
      folder: The subdirectory of the split's directory that holds it, None if it lies directly there.
      frame_files: Names of the frames in the directory; empty for a file.
      times: When the frames of a file are shown.
      digest: Checksum of the beginning and end of the file, or of all frames.
      error: Why it cannot be read; empty if it can.
    """

    path: str
    folder: str | None
    frame_files: tuple[str, ...]
    times: FrameTimes
    digest: int
    error: str

    def length(self, fps: float | None) -> int:
        """Return the number of frames at a rate, or as stored if it is None."""
        if fps is None:
            return len(self.frame_files) or self.times.frames
        return int((self.times.last - self.times.first) * fps + 1e-6) + 1

    def reason_against(self, plan: ClipPlan, fps: float | None) -> str:
        """Return why the video has no clips; empty if it has."""
        if self.error:
            return self.error
        if fps is not None and self.frame_files:
            return "a directory of frames has no times, which config.data.fps needs"
        if fps is None and not self.times.is_regular:
            return "its frames are not equally spaced in time; set config.data.fps to pick them by their times"
        return plan.too_short(self.length(fps))


class VideoFiles:
    """Clips of videos, decoded when they are read, an :class:`vqjax.data.ImageDataset`.

    Args:
      name: Name in reports.
      root: Directory of the videos.
      videos: The videos; those that are too short have no clips.
      image_size: Height and width of the frames in pixels, or one number for both.
      plan: The frames that are clips.
      fps: Frames a second that are picked by their times; None for all.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: What is taken of frames of other sizes, the same part of all frames of a clip.
      labels: Class of each video; None if they have none.
      class_names: The class that each label stands for; None if there are no labels.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        videos: Sequence[VideoSource],
        image_size: Size,
        plan: ClipPlan,
        fps: float | None,
        channels: int,
        crop: Crop,
        labels: Int32[np.ndarray, " videos"] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.name, self.class_names = name, class_names
        self._root, self._videos, self._labels = root, videos, labels
        self._size, self._channels, self._crop = height_and_width(image_size), channels, crop
        self._plan, self._fps = plan, fps
        self._clips = plan.clips([video.length(fps) for video in videos])
        self.is_random = crop.random is not None or plan.random_start

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Example:
        return self.draw(index)

    def draw(self, index: int, generator: np.random.Generator | None = None) -> Example:
        """Return a clip with a random start and crop, if this dataset has random ones and there is a generator."""
        number, start = self._clips[index].tolist()
        video = self._videos[number]
        start = self._plan.start(start, video.length(self._fps), generator)
        frames = np.stack(list(self._frames(video, self._plan.numbers(start), same_for_all_frames(generator))))
        return {"video": frames} if self._labels is None else {"video": frames, "label": self._labels[number]}

    def _frames(
        self, video: VideoSource, numbers: range, generator: Callable[[], np.random.Generator | None]
    ) -> Iterator[UInt8[np.ndarray, "height width channels"]]:
        """Yield frames of a video, each cropped by the same random numbers."""
        path = self._root / video.path

        if video.frame_files:
            for file in (path / video.frame_files[number] for number in numbers):
                yield self._crop.decode(file, self._size, generator(), path=file, channels=self._channels)
            return
        first, spacing = video.times.first, 1 / self._fps if self._fps else video.times.spacing
        for picture in read_frames(path, [first + number * spacing for number in numbers], video.times):
            yield self._crop(with_channels(picture, self._channels), self._size, generator())

    def origin(self, index: int) -> str:
        """Return the path of a video, relative to the directory of all, and the frames in it."""
        number, start = self._clips[index].tolist()
        at_rate = f" at {self._fps:g} a second" if self._fps else ""
        return f"{printable(self._videos[number].path)}, frames {start} to {start + self._plan.span - 1}{at_rate}"

    def content(self, index: int) -> bytes:
        """Return a checksum of the files of a video, and the first frame of a clip; nothing if a file is gone."""
        number, start = self._clips[index].tolist()
        video = self._videos[number]
        files = [os.path.join(video.path, name) for name in video.frame_files] or [video.path]
        try:
            return _checksum(tuple(self._root / file for file in files)) + start.to_bytes(8)
        except OSError:
            return b""

    def digests(self) -> UInt64[np.ndarray, " clips"]:
        """Return checksums of the first and last bytes of the video, and the first frame, of each clip."""
        clips = self._clips.tolist()
        return np.array([_digest([self._videos[number].digest, start]) for number, start in clips], np.uint64)


def video_folder_splits(
    name: str | Path,
    image_size: Size = 64,
    train_split: str | None = "train",
    eval_split: str | None = "test",
    eval_fraction: float = 0.1,
    channels: int = 3,
    crop: CropName = "lanczos",
    random_crop: RandomCropName | None = None,
    frames: int = 17,
    frame_stride: int = 1,
    fps: float | None = None,
    clip_stride: int | None = None,
    random_start: bool = False,
) -> Splits:
    """Find the videos below a directory; other files are counted in the log and ignored.

    A video is a file such as an .mp4, or a directory that directly holds images and no video files: its images, in the
    order of the numbers in their names, are the frames. Hidden and system files and directories are ignored.

    If every video lies in a subdirectory of its split, the sorted names of these subdirectories are the classes;
    otherwise there are no labels. A directory of frames is a video of its own, not a class.

    Args:
      name: The directory, searched recursively, symbolic links included.
      image_size: Height and width of the frames in pixels, or one number for both.
      train_split: Subdirectory with the training videos; None if the directory is not divided into splits.
      eval_split: Subdirectory with the held-out videos; None if the directory is not divided into splits.
      eval_fraction: Share of the videos held out at random if neither subdirectory exists, in (0, 1).
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: How frames of other sizes are scaled and cropped: ``center`` of :class:`vqjax.data.crops.Crop`.
      random_crop: What is taken of training clips instead, anew each time: ``random`` of it.
      frames: Frames of a clip.
      frame_stride: Take one of so many frames.
      fps: Frames a second that are picked by their times, of which the stride takes one of so many; None for the
        frames as they are stored, without videos whose frame rate varies.
      clip_stride: Frames from the beginning of a clip to that of the next; None for clips that do not overlap.
      random_start: Let training clips begin anywhere in their video, anew each time.

    Returns:
      Both splits, in sorted order of the paths.

    Raises:
      UserError: The directory is missing or holds no videos with clips, only one of the subdirectories exists, or PyAV
        is missing.
    """
    check_channels(channels)
    check_fps(fps)
    plans = [ClipPlan(frames, frame_stride, clip_stride, is_random) for is_random in (random_start, False)]
    find = functools.partial(_videos, plan=plans[0], fps=fps)
    root, splits = divided_folder(name, train_split, eval_split, eval_fraction, find, kind="video")

    def dataset(split: FolderSplit, plan: ClipPlan, crop: Crop) -> VideoFiles:
        options = image_size, plan, fps, channels, crop
        return VideoFiles(split.name, root, split.files, *options, split.labels, split.class_names)

    crops = Crop(crop, random_crop), Crop(crop)
    return Splits(*(dataset(*parts) for parts in zip(splits, plans, crops, strict=True)))


def _videos(root: Path, split: str, plan: ClipPlan, fps: float | None) -> list[VideoSource]:
    """The videos of a split that have clips, or of all if there are no splits."""
    kind = FileKind("video_folders", video_suffixes() | image_suffixes(), _facts, few=50)
    found = _grouped(index_folder(root / split, kind), split)
    if not found:
        raise UserError(
            f"config.data.name must be a directory of videos, got {root / split} without any "
            f"{', '.join(sorted(video_suffixes()))} files and directories of frames; correct the path."
        )
    reasons = [video.reason_against(plan, fps) for video in found]
    errors = [UnreadableImage(root / video.path, why) for video, why in zip(found, reasons, strict=True) if why]
    report_unreadable(root / split, errors, len(found), "video")
    return [video for video, why in zip(found, reasons, strict=True) if not why]


def _facts(path: Path) -> tuple[float, ...]:
    """When the frames of a video file are shown, or that a file is an image."""
    if _is_video(path.name):
        return tuple(map(float, frame_times(path)))
    check_header(path)
    return tuple(map(float, _UNTIMED))


def _grouped(files: Sequence[IndexedFile], split: str) -> list[VideoSource]:
    """The videos that files are, or are the frames of."""
    videos, frames = {}, {}
    for file in files:
        if _is_video(file.path):
            times = FrameTimes.of(file.facts) if file.facts else _UNTIMED
            videos[file.path] = VideoSource(
                os.path.join(split, file.path), folder_of(file.path), (), times, file.digest, file.error
            )
        else:
            frames.setdefault(os.path.dirname(file.path), []).append(file)
    for directory in frames.keys() - {os.path.dirname(path) for path in videos}:
        group = sorted(frames[directory], key=lambda file: _by_number(file.path))
        names = tuple(os.path.basename(file.path) for file in group)
        error = next((f"{os.path.basename(file.path)}: {file.error}" for file in group if file.error), "")
        videos[directory] = VideoSource(
            os.path.normpath(os.path.join(split, directory)),
            folder_of(directory),
            names,
            _UNTIMED,
            _digest([file.digest for file in group]),
            error,
        )
    # By parts, as paths are: a directory comes before what only begins like it.
    return [videos[path] for path in sorted(videos, key=lambda path: path.split("/"))]


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in video_suffixes()


def _by_number(path: str) -> list[tuple[int, str]]:
    """The parts of a name, so that frame 10 comes behind frame 9."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", os.path.basename(path))
    return [(int(number or 0), text) for number, text in parts]


def _digest(numbers: Sequence[int]) -> int:
    content = b"".join(number.to_bytes(8) for number in numbers)
    return digest(content, b"", len(content))


# Two, because the clips of a video follow one another, in both splits.
@functools.lru_cache(maxsize=2)
def _checksum(paths: tuple[Path, ...]) -> bytes:
    checksums = b""
    for path in paths:
        with path.open("rb") as file:
            checksums += hashlib.file_digest(file, "blake2b").digest()
    return hashlib.blake2b(checksums).digest()
