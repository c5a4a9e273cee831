"""Source ``moving_shapes``: drawn clips of shapes that move, and bounce off the edges, over a smooth background."""

import math

import numpy as np
from jaxtyping import Float

from vqjax.data.clips import ClipPlan
from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, check_channels, height_and_width
from vqjax.errors import UserError

_TRAINING_CLIPS, _EVAL_CLIPS = 1024, 128
_MOST_SHAPES = 3
_SMALLEST_SIDE = 8
# As shares of the shorter side of the frames.
_RADIUS = (0.12, 0.22)
_SPEED = (0.015, 0.06)  # a frame
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Plane = Float[np.ndarray, "frames height width"]


class MovingShapes:
    """Clips of one to three shapes of one kind, an :class:`vqjax.data.ImageDataset` whose classes are the kinds.

    The shapes have random colors, sizes and constant velocities, are drawn with smooth edges, and bounce off the edges
    of the frames; the colors of the background run from one side to the other. Clips with other indices are others, and
    the clips are the same in every run.

    Args:
      name: Name in reports.
      indices: Numbers of the clips.
      image_size: Height and width of the frames in pixels, or one number for both.
      plan: Number of frames, and by how many frames of the motion they are apart.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Raises:
      UserError: The frames are too small to show a shape.

    Example:
      >>> shapes = MovingShapes("shapes", range(10), image_size=32, plan=ClipPlan(frames=5))
      >>> shapes[3]["video"].shape, shapes.class_names[shapes[3]["label"]]
      ((5, 32, 32, 3), 'triangle')
    """

    class_names = ("disk", "box", "triangle")

    def __init__(self, name: str, indices: range, image_size: Size, plan: ClipPlan, channels: int = 3):
        check_channels(channels)
        self.name = name
        self._indices, self._size, self._plan, self._channels = indices, height_and_width(image_size), plan, channels
        if min(self._size) < _SMALLEST_SIDE:
            raise UserError(
                f"config.data.image_size must be at least {_SMALLEST_SIDE} for moving shapes, got {image_size}."
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=self._indices[index]))
        label = int(generator.integers(len(self.class_names)))
        pixels = self._background(generator)
        for _ in range(generator.integers(1, _MOST_SHAPES, endpoint=True)):
            color = generator.uniform(0, 255, 3).astype(np.float32)
            color[generator.integers(3)] = 255  # bright, as the background is dark
            radius = generator.uniform(*_RADIUS) * min(self._size)
            cover = np.clip(0.5 - _distance(label, *self._path(radius, generator), radius), 0, 1)[..., None]
            pixels = pixels + cover * (color - pixels)
        if self._channels == 1:
            pixels = pixels @ _LUMA[:, None]
        video = np.rint(pixels).astype(np.uint8)
        if self._channels == 4:
            video = np.concatenate([video, np.full_like(video[..., :1], 255)], axis=-1)
        return {"video": video, "label": np.int32(label)}

    def _background(self, generator: np.random.Generator) -> Float[np.ndarray, "frames height width 3"]:
        """Two dark colors that run into each other along a direction, equal in all frames."""
        first, second = generator.uniform(0, 96, (2, 3)).astype(np.float32)
        angle = generator.uniform(0, 2 * math.pi)
        y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in self._size)
        share = 0.5 + (math.cos(angle) * x + math.sin(angle) * y[:, None]) / math.sqrt(8)
        return (first + share[..., None] * (second - first))[None].repeat(self._plan.frames, axis=0)

    def _path(self, radius: float, generator: np.random.Generator) -> tuple[Plane, Plane]:
        """By how much each pixel is to the right of and below a center that bounces off the edges."""
        times = np.arange(self._plan.frames) * self._plan.frame_stride
        angle = generator.uniform(0, 2 * math.pi)
        speed = generator.uniform(*_SPEED) * min(self._size)
        offsets = []
        for side, velocity in zip(self._size, (speed * math.sin(angle), speed * math.cos(angle)), strict=True):
            room = side - 2 * radius
            # Unfolded, the way back lies behind the edge.
            way = (generator.uniform(0, room) + velocity * times) % (2 * room)
            centers = radius + np.minimum(way, 2 * room - way)
            offsets.append((np.arange(side) + 0.5 - centers[:, None]).astype(np.float32))
        y, x = np.broadcast_arrays(offsets[0][:, :, None], offsets[1][:, None])
        return x, y


def moving_shape_splits(image_size: Size = 64, frames: int = 17, frame_stride: int = 1, channels: int = 3) -> Splits:
    """Draw moving shapes, whose kinds are the classes.

    Args:
      image_size: Height and width of the frames in pixels, or one number for both; at least 8.
      frames: Frames of a clip.
      frame_stride: Take one of so many frames, which makes the motion faster.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Returns:
      1024 training clips and 128 held-out ones.

    Raises:
      UserError: A number is out of range.

    Example:
      >>> splits = moving_shape_splits(image_size=16, frames=5)
      >>> len(splits.train), len(splits.eval), splits.train.class_names
      (1024, 128, ('disk', 'box', 'triangle'))
    """
    plan, total = ClipPlan(frames, frame_stride), _TRAINING_CLIPS + _EVAL_CLIPS
    return Splits(
        MovingShapes("moving_shapes/train", range(_TRAINING_CLIPS), image_size, plan, channels),
        MovingShapes("moving_shapes/eval", range(_TRAINING_CLIPS, total), image_size, plan, channels),
    )


def _distance(label: int, x: Plane, y: Plane, radius: float) -> Plane:
    """The distance of points from a shape within a radius, negative inside; from its corners, that from its sides."""
    if label == 0:
        return np.hypot(x, y) - radius
    if label == 1:
        return np.maximum(np.abs(x), np.abs(y)) - radius / math.sqrt(2)
    slanted = np.abs(x) * (math.sqrt(3) / 2) - y / 2
    return np.maximum(slanted, y) - radius / 2
