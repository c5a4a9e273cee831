"""Decoding of video files: when their frames are shown, and the frames that are shown at given times."""

import collections
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from vqjax.data.dataset import UnreadableImage
from vqjax.data.images import check_regular_file
from vqjax.errors import UserError, one_line

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

# FFmpeg also reads play lists, which open other files; a data directory has no business doing that.
_CONTAINERS = "asf,avi,flv,gif,matroska,mov"
_SUFFIXES = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .webm .wmv"
# These store when a frame is decoded, not when it is shown.
_WITHOUT_TIMES = frozenset({"asf", "avi"})
# Of the spacing of the frames: containers round times, to milliseconds for example.
_LARGEST_DEVIATION = 0.25
# Sound may end a little after the last frame.
_MISSING_SECONDS = 0.25
_EPSILON = 1e-6
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class FrameTimes(NamedTuple):
    """When the frames of a video are shown.

    Attributes:
      frames: Number of frames.
      first: Time of the first frame in seconds.
      last: Time of the last frame.
      is_regular: Whether the frames are equally spaced in time.
      is_stored: Whether the file stores the times; otherwise frames are counted from the first one.

    Example:
      >>> FrameTimes(frames=51, first=0.0, last=2.0, is_regular=True, is_stored=True).spacing
      0.04
    """

    frames: int
    first: float
    last: float
    is_regular: bool
    is_stored: bool

    @classmethod
    def of(cls, facts: Sequence[float]) -> "FrameTimes":
        """Return the times from their fields as numbers."""
        frames, first, last, is_regular, is_stored = facts
        return cls(int(frames), first, last, bool(is_regular), bool(is_stored))

    @property
    def spacing(self) -> float:
        """Mean time from one frame to the next in seconds; 0 for a single frame."""
        return (self.last - self.first) / max(1, self.frames - 1)


def video_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that :func:`read_frames` reads, in lower case."""
    return frozenset(_SUFFIXES.split())


def check_decoder() -> None:
    """Refuse to go on without the library that decodes videos.

    Raises:
      UserError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'video files need PyAV, which cannot be imported ({one_line(error)}); pip install "vqjax[video]".'
        ) from error


def frame_times(path: Path) -> FrameTimes:
    """Find out when the frames of a video file are shown, decoding no more than the first one.

    Args:
      path: The file, all of which is read.

    Raises:
      UnreadableImage: The file is no video, or a damaged one.
    """
    with _opened(path) as (container, stream):
        times, end, is_decoded = [], 0.0, False
        for packet in container.demux():
            is_shown = packet.stream.index == stream.index
            if is_shown and not is_decoded:
                is_decoded = bool(packet.decode())
            time = packet.pts if packet.pts is not None else packet.dts
            if not packet.size or time is None or packet.time_base is None:
                continue
            if is_shown and packet.is_corrupt:
                raise ValueError(f"truncated or damaged after {len(times)} frames")
            end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
            if is_shown and not packet.is_discard:
                times.append(float(time * packet.time_base))
        if not is_decoded or not times:
            raise ValueError("no frames")
        shown = np.sort(times)
        known = FrameTimes(len(shown), float(shown[0]), float(shown[-1]), True, _stores_times(container, stream))
        if container.duration is not None:
            missing = container.duration / 1e6 - end
            if missing > max(_MISSING_SECONDS, 2 * known.spacing):
                raise ValueError(f"truncated: the last {missing:.1f} seconds are missing")
    grid = known.first + known.spacing * np.arange(known.frames)
    is_regular = np.abs(shown - grid).max() <= _LARGEST_DEVIATION * known.spacing
    return known._replace(is_regular=bool(is_regular and (known.spacing > 0 or known.frames == 1)))


def read_frames(path: Path, wanted: Sequence[float], known: FrameTimes) -> Iterator[Image.Image]:
    """Yield the frames of a video file whose times are nearest to given ones, upright.

    Decoding begins at a key frame before the first of them.

    Args:
      path: The file.
      wanted: The times in seconds, in rising order.
      known: When its frames are shown.

    Yields:
      The frame for each time.

    Raises:
      UnreadableImage: The file is damaged, or is not the one whose times are known.
    """
    slack = known.spacing * _LARGEST_DEVIATION if known.is_regular else _EPSILON
    if known.is_stored and wanted[0] > known.first + slack:
        with _opened(path) as (container, stream):
            container.seek(int((wanted[0] + slack) / stream.time_base), stream=stream)
            frames = _with_times(container, stream, known)
            first = next(frames, None)
            # A container may seek by times of decoding, and so behind the frame.
            if first is not None and first[0] <= wanted[0] + slack:
                yield from _nearest(itertools.chain([first], frames), wanted, known)
                return
    with _opened(path) as (container, stream):
        yield from _nearest(_with_times(container, stream, known), wanted, known)


@contextlib.contextmanager
def _opened(path: Path) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """A file and its video; whatever fails is an :class:`UnreadableImage`."""
    check_decoder()
    import av

    check_regular_file(path)
    try:
        if not path.stat().st_size:
            raise ValueError("empty file")
        # Not by its name, which may be no UTF-8, or be taken for a URL.
        with path.open("rb") as file, av.open(file, container_options={"format_whitelist": _CONTAINERS}) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise ValueError("no video in it")
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            if stream.width * stream.height > (Image.MAX_IMAGE_PIXELS or 2**31):
                raise ValueError(f"frames of {stream.width} x {stream.height} pixels are absurdly large")
            # Several files are decoded at the same time already.
            stream.codec_context.thread_count = 1
            yield container, stream
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(path, error.strerror or one_line(error)) from error
    except Exception as error:  # decoders raise a dozen unrelated types
        raise UnreadableImage(path, getattr(error, "strerror", None) or one_line(error)) from error


def _stores_times(container: "InputContainer", stream: "VideoStream") -> bool:
    return container.format.name not in _WITHOUT_TIMES or not stream.codec_context.has_b_frames


def _with_times(
    container: "InputContainer", stream: "VideoStream", known: FrameTimes
) -> "Iterator[tuple[float, VideoFrame]]":
    """Yield frames in the order in which they are shown, each with its time."""
    for number, frame in enumerate(container.decode(stream)):
        if known.is_stored and frame.pts is None:
            raise ValueError("a frame without a time")
        yield float(frame.pts * frame.time_base) if known.is_stored else known.first + number * known.spacing, frame


def _nearest(
    frames: "Iterator[tuple[float, VideoFrame]]", wanted: Sequence[float], known: FrameTimes
) -> Iterator[Image.Image]:
    """Yield the frames that are nearest to given times."""
    left, before = collections.deque(wanted), None
    for time, frame in frames:
        while left and left[0] <= time:
            is_nearer = before is not None and left[0] - before[0] < time - left[0]
            left.popleft()
            yield _picture(before[1] if is_nearer else frame)
        if not left:
            return
        before = time, frame
    if before is None or left[-1] > before[0] + known.spacing / 2 + _EPSILON:
        raise ValueError(f"it ends before the frame at {left[-1]:.3f} seconds")
    yield from [_picture(before[1])] * len(left)


def _picture(frame: "VideoFrame") -> Image.Image:
    """The image of a frame as the camera was held."""
    if frame.is_corrupt:
        raise ValueError("damaged frames")
    has_opacity = any(component.is_alpha for component in frame.format.components)
    picture = Image.fromarray(frame.to_ndarray(format="rgba" if has_opacity else "rgb24"))
    turn = _TURNS.get(frame.rotation % 360)
    return picture if turn is None else picture.transpose(turn)
