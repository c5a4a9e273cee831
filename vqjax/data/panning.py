"""Source ``panning_photos``: clips of a window that moves over the photographs that come with scikit-image."""

import math
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vqjax.data.clips import ClipPlan
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, check_channels, height_and_width, with_channels
from vqjax.data.photos import (
    EVAL_SCENES,
    SMALLEST_CONTRAST,
    TRAINING_SCENES,
    contrast,
    load_photo,
    summed_area_tables,
)
from vqjax.errors import UserError

_TRAINING_CLIPS, _EVAL_CLIPS = 1024, 128
_SPEED = (2.0, 6.0)  # pixels of the clip a frame
_MOST_TURN = math.radians(2)  # a frame
_MOST_ZOOM = 0.02  # a frame
_LARGEST_WINDOW = 4  # times image_size
_CANDIDATES, _ATTEMPTS = 2048, 50
_LANCZOS, _BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC


class Motion(NamedTuple):
    """Windows over a photograph, one for each frame of a clip.

    Attributes:
      centers: Centers of the windows, ``x`` and ``y``, in pixels of the photograph.
      angles: By how much the windows are turned, in radians, clockwise as seen.
      scales: Sides of the windows divided by those of the clip.
    """

    centers: Float[np.ndarray, "*clips frames 2"]
    angles: Float[np.ndarray, "*clips frames"]
    scales: Float[np.ndarray, "*clips frames"]

    def half_sides(self, size: tuple[int, int]) -> Float[np.ndarray, "*clips frames 2"]:
        """Return half the width and height of the upright boxes around the windows.

        Args:
          size: Height and width of the clip.
        """
        cosines, sines = np.abs(np.cos(self.angles)), np.abs(np.sin(self.angles))
        height, width = (side * self.scales / 2 for side in size)
        return np.stack([width * cosines + height * sines, width * sines + height * cosines], axis=-1)


class PanningPhotos:
    """Clips of a window that moves over photographs, an :class:`vqjax.data.ImageDataset` without labels.

    The window moves by 2 to 6 pixels of the clip a frame, at constant velocity in the photograph, turns by up to 2
    degrees a frame and grows or shrinks by up to 2 % a frame. Its side is up to four times that of the clip in the
    middle of it, and never smaller than the clip; nearly constant parts are left out. The clips are the same in every
    run.

    Args:
      name: Name in reports.
      scenes: File names in scikit-image's data directory; each inner tuple shows one scene.
      clips: Number of clips, from each scene in turn.
      image_size: Height and width of the frames in pixels, or one number for both.
      plan: Number of frames, and by how many frames of the motion they are apart.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Raises:
      UserError: A photograph has no room for such a clip, or scikit-image came without it.
    """

    class_names = None

    def __init__(
        self,
        name: str,
        scenes: tuple[tuple[str, ...], ...],
        clips: int,
        image_size: Size,
        plan: ClipPlan,
        channels: int = 3,
    ):
        check_channels(channels)
        self.name = name
        self._size, self._plan, self._channels = height_and_width(image_size), plan, channels
        # Scenes take turns, and so do the photographs of one.
        self._file_names = [
            scenes[i % len(scenes)][i // len(scenes) % len(scenes[i % len(scenes)])] for i in range(clips)
        ]
        self._photos, self._motions = {}, {}
        for file_name in dict.fromkeys(self._file_names):
            photo = load_photo(file_name)
            rows = [i for i, other in enumerate(self._file_names) if other == file_name]
            motions = _motions(file_name, photo, len(rows), self._size, plan)
            self._motions |= {row: Motion(*(part[i] for part in motions)) for i, row in enumerate(rows)}
            self._photos[file_name] = with_channels(photo, channels)

    def __len__(self) -> int:
        return len(self._file_names)

    def __getitem__(self, index: int) -> Example:
        return {"video": _render(self._photos[self._file_names[index]], self._motions[index], self._size)}

    def stamp(self) -> str:
        """Return what the clips depend on."""
        return repr((self.name, self._size, self._plan, self._channels, version("scikit-image")))

    def origin(self, index: int) -> str:
        """Return the photograph, and the center of the first window in it."""
        return f"{self._file_names[index]}{self._motions[index].centers[0].round().astype(int).tolist()}"


def panning_photo_splits(image_size: Size = 64, frames: int = 17, frame_stride: int = 1, channels: int = 3) -> Splits:
    """Pan over the bundled photographs; the held-out ones show a cat and a coffee cup that training never sees.

    Args:
      image_size: Height and width of the frames in pixels, or one number for both.
      frames: Frames of a clip.
      frame_stride: Take one of so many frames, which makes the motion faster.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Returns:
      1024 training clips and 128 held-out ones.

    Raises:
      UserError: A photograph has no room for such a clip, or scikit-image came without it.

    Example:
      >>> splits = panning_photo_splits(image_size=16, frames=5)
      >>> len(splits.train), len(splits.eval), splits.train[0]["video"].shape
      (1024, 128, (5, 16, 16, 3))
    """
    plan = ClipPlan(frames, frame_stride)
    return Splits(
        PanningPhotos("panning_photos/train", TRAINING_SCENES, _TRAINING_CLIPS, image_size, plan, channels),
        PanningPhotos("panning_photos/eval", EVAL_SCENES, _EVAL_CLIPS, image_size, plan, channels),
    )


def _motions(file_name: str, photo: Image.Image, count: int, size: tuple[int, int], plan: ClipPlan) -> Motion:
    """Draw motions that stay inside of a photograph, the same every time."""
    generator, sums = np.random.Generator(np.random.Philox(key=0)), summed_area_tables(photo)
    accepted: list[Motion] = []
    for _ in range(_ATTEMPTS):
        candidates = _candidates(photo, size, plan, generator)
        ends = (0, plan.frames // 2, plan.frames - 1)
        middles, halves = candidates.centers[:, ends], candidates.half_sides(size)[:, ends]
        boxes = np.concatenate([middles - halves, middles + halves], axis=-1).astype(np.int64)
        is_rich = contrast(sums, boxes.reshape(-1, 4)).reshape(-1, len(ends)).min(1) >= SMALLEST_CONTRAST
        accepted.append(Motion(*(part[is_rich] for part in candidates)))
        if sum(len(motions.scales) for motions in accepted) >= count:
            return Motion(*(np.concatenate(parts)[:count] for parts in zip(*accepted, strict=True)))
    height, width = size
    raise UserError(
        f"config.data.image_size must leave room for a window that moves over {file_name} of {photo.height} x "
        f"{photo.width} pixels, got {height if height == width else size} with frames={plan.frames} and "
        f"frame_stride={plan.frame_stride}; use fewer pixels or frames, or config.data.source='video_folder'."
    )


def _candidates(photo: Image.Image, size: tuple[int, int], plan: ClipPlan, generator: np.random.Generator) -> Motion:
    """Draw motions, and return those for which a photograph has room."""

    def drawn(low: float, high: float) -> Float[np.ndarray, "candidates 1"]:
        return generator.uniform(low, high, (_CANDIDATES, 1))

    # From the middle of the clip, where the window is upright.
    times = (np.arange(plan.frames) - (plan.frames - 1) / 2) * plan.frame_stride
    growth = np.exp(np.log1p(drawn(-_MOST_ZOOM, _MOST_ZOOM)) * times)
    angles = drawn(-_MOST_TURN, _MOST_TURN) * times
    # From the smallest window that never has fewer pixels than the clip.
    smallest = 1 / growth.min(1, keepdims=True)
    scale = np.exp(drawn(0.0, 1.0) * (math.log(_LARGEST_WINDOW) - np.log(smallest))) * smallest
    direction, speed = drawn(0.0, 2 * math.pi), drawn(*_SPEED) * scale
    paths = np.stack([np.cos(direction) * speed * times, np.sin(direction) * speed * times], axis=-1)
    halves = Motion(paths, angles, scale * growth).half_sides(size)
    # A pixel of the photograph is left on each side.
    least = (halves - paths).max(1) + 1
    most = photo.size - (halves + paths).max(1) - 1
    fits = (least <= most).all(1) & (smallest[:, 0] <= _LARGEST_WINDOW)
    middle = least + generator.uniform(size=least.shape) * (most - least)
    return Motion((middle[:, None] + paths)[fits], angles[fits], (scale * growth)[fits])


def _render(
    photo: Image.Image, motion: Motion, size: tuple[int, int]
) -> UInt8[np.ndarray, "frames height width channels"]:
    """The windows of a photograph, each at the size of the clip."""
    height, width = size
    halves = motion.half_sides(size)
    lower = np.floor((motion.centers - halves).min(0)).clip(0)
    upper = np.ceil((motion.centers + halves).max(0)).clip(max=photo.size)
    # Scaled once with a filter that antialiases, as the one of transforms does not: what remains is up to a sixth.
    scaled_size = np.ceil((upper - lower) / np.sqrt(motion.scales.min() * motion.scales.max())).astype(int)
    box = (*lower.tolist(), *upper.tolist())
    scaled = photo.resize(tuple(scaled_size.tolist()), _LANCZOS, box, reducing_gap=3.0)
    ratio = scaled_size / (upper - lower)
    turns = np.stack([np.cos(motion.angles), -np.sin(motion.angles), np.sin(motion.angles), np.cos(motion.angles)], 1)
    matrices = turns.reshape(-1, 2, 2) * motion.scales[:, None, None] * ratio[:, None]
    corners = (motion.centers - lower) * ratio - matrices @ np.array([width / 2, height / 2])
    frames = [
        scaled.transform((width, height), Image.Transform.AFFINE, tuple(affine.reshape(-1).tolist()), _BICUBIC)
        for affine in np.concatenate([matrices, corners[..., None]], axis=-1)
    ]
    return np.stack([np.asarray(frame).reshape(height, width, -1) for frame in frames])
