"""Clips: which frames of videos are examples."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vqjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """Choice of clips of equally spaced frames from videos.

    Attributes:
      frames: Frames of a clip.
      frame_stride: Take one of so many frames.
      clip_stride: Frames from the beginning of a clip to that of the next; None for clips that do not overlap.
      random_start: Begin anywhere in the video of a clip if there is a random number generator, in training.

    Raises:
      UserError: A number is less than 1.

    Example:
      >>> plan = ClipPlan(frames=3, frame_stride=2)
      >>> plan.span, plan.clips([12, 4]).tolist(), list(plan.numbers(5))
      (5, [[0, 0], [0, 5]], [5, 7, 9])
    """

    frames: int = 17
    frame_stride: int = 1
    clip_stride: int | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "frame_stride", "clip_stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"config.data.{name} must be at least 1, got {value}; set it to a number of frames.")

    @property
    def span(self) -> int:
        """Frames of a video from the first to the last one of a clip."""
        return (self.frames - 1) * self.frame_stride + 1

    def clips(self, lengths: Sequence[int] | Int[np.ndarray, " videos"]) -> Int[np.ndarray, "clips 2"]:
        """Return the number of the video, and the first frame in it, of each clip.

        Args:
          lengths: Frames of each video; too short ones have no clip.
        """
        starts = [np.arange(0, max(0, length - self.span + 1), self.clip_stride or self.span) for length in lengths]
        videos = np.repeat(np.arange(len(starts)), [len(some) for some in starts])
        return np.stack([videos, np.concatenate([np.zeros(0, int), *starts])], axis=1)

    def start(self, start: int, length: int, generator: np.random.Generator | None = None) -> int:
        """Return the first frame of a clip, which is random if this plan has random starts and there is a generator.

        Args:
          start: The first frame otherwise.
          length: Frames of the video.
          generator: Source of random starts.
        """
        if generator is None or not self.random_start:
            return start
        return int(generator.integers(0, length - self.span, endpoint=True))

    def numbers(self, start: int) -> range:
        """Return the numbers of a clip's frames in its video, from that of the first one."""
        return range(start, start + self.span, self.frame_stride)

    def too_short(self, length: int) -> str:
        """Return why a video has no clip; empty if it has one.

        Args:
          length: Frames of the video.
        """
        if length >= self.span:
            return ""
        by_stride = f" at a stride of {self.frame_stride}" if self.frame_stride > 1 else ""
        return f"{_frames(length)}, while a clip of {self.frames}{by_stride} takes {self.span}"


def check_fps(fps: float | None) -> None:
    """Refuse rates at which there are no frames.

    Args:
      fps: Frames a second; None for those that are stored.

    Raises:
      UserError: It is not a finite number above zero.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise UserError(f"config.data.fps must be above 0, got {fps}; use None for the frames as they are stored.")


def _frames(count: int) -> str:
    return "one frame" if count == 1 else f"{count} frames"
