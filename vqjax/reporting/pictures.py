"""Contact sheets of originals above their reconstructions, and moving ones of clips."""

import io
import math
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vqjax.errors import UserError
from vqjax.functional.clips import filmstrips
from vqjax.runtime.files import atomic_file

CAPTIONS = ("original", "reconstruction")
FRAMES_PER_SECOND = 8
"""Speed of moving pictures."""

_SHOWN_FRAMES = 8
_FONT_SIZE = 15
_TARGET_WIDTH = 1100
_LARGEST_CELL = 256
_MARGIN = 8
_THIN_GAP = 2
_PAIR_GAP = 12
_PAPER = 255
_INK = 64


def comparison_sheet(
    originals: UInt8[np.ndarray, "images height width channels"],
    reconstructions: UInt8[np.ndarray, "images height width channels"],
    *,
    columns: int = 8,
    scale: int | None = None,
    captions: tuple[str, str] = CAPTIONS,
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw pairs of rows, originals above reconstructions, with captions at the left.

    Args:
      originals: Images of 1 (gray), 3 (RGB) or 4 (RGB and opacity) channels, 0 to 255; transparent pixels are white.
      reconstructions: Their reconstructions, in the same order.
      columns: Maximum number of images side by side; large images get fewer, so that the sheet fits a screen.
      scale: Integer factor by which the pixels are enlarged; None chooses one that fits a screen.
      captions: What the rows are called.

    Returns:
      One RGB image, 0 to 255, about 1000 to 1400 pixels wide if the images allow it.

    Raises:
      UserError: There are no images, or others than described, or ``columns`` or ``scale`` is below 1.

    Example:
      >>> images = np.zeros([3, 32, 32, 3], np.uint8)
      >>> comparison_sheet(images, images).shape
      (530, 892, 3)
    """
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}; leave it out to get the default.")
    check_pairs(originals, reconstructions)
    count, _, image_width, _ = originals.shape
    if count == 0:
        raise UserError("originals must have at least one image, got none; choose a non-empty split.")
    # Spreads the images evenly: nine of them at eight columns become 5 + 4 rather than 8 + 1.
    most_columns = min(columns, max(1, _TARGET_WIDTH // (image_width * (scale or 1))))
    columns = math.ceil(count / math.ceil(count / most_columns))
    if scale is None:
        widest_cell = min(_LARGEST_CELL, _TARGET_WIDTH / columns)
        scale = max(1, round(widest_cell / image_width))
    return _draw(np.stack([to_rgb(originals), to_rgb(reconstructions)], axis=1), columns, scale, captions)


def clip_sheet(
    originals: UInt8[np.ndarray, "clips frames height width channels"],
    reconstructions: UInt8[np.ndarray, "clips frames height width channels"],
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw filmstrips of clips above those of their reconstructions.

    Args:
      originals: Clips, as images of :func:`comparison_sheet`.
      reconstructions: Their reconstructions, in the same order.

    Returns:
      One RGB image, 0 to 255.

    Example:
      >>> clips = np.zeros([2, 5, 32, 32, 3], np.uint8)
      >>> clip_sheet(clips, clips).shape
      (800, 1080, 3)
    """
    shown = min(_SHOWN_FRAMES, originals.shape[1])
    strips = filmstrips(originals, shown), filmstrips(reconstructions, shown)
    scale = min(_TARGET_WIDTH // strips[0].shape[2], _LARGEST_CELL // originals.shape[3])
    return comparison_sheet(*strips, columns=1, scale=max(1, scale))


def moving_sheet(
    originals: UInt8[np.ndarray, "clips frames height width channels"],
    reconstructions: UInt8[np.ndarray, "clips frames height width channels"],
) -> UInt8[np.ndarray, "frames sheet_height sheet_width 3"]:
    """Draw each frame of clips above its reconstruction, as the frames of a moving picture for :func:`save_png`.

    Args:
      originals: Clips, as images of :func:`comparison_sheet`.
      reconstructions: Their reconstructions, in the same order.

    Returns:
      RGB images, 0 to 255.

    Example:
      >>> clips = np.zeros([4, 5, 32, 32, 3], np.uint8)
      >>> moving_sheet(clips, clips).shape
      (5, 530, 1150, 3)
    """
    pairs = zip(originals.swapaxes(0, 1), reconstructions.swapaxes(0, 1), strict=True)
    return np.stack([comparison_sheet(*pair) for pair in pairs])


def sheet(
    images: UInt8[np.ndarray, "images height width channels"], columns: int
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw images in rows.

    Args:
      images: Images of 1 (gray), 3 (RGB) or 4 (RGB and opacity) channels, 0 to 255; transparent pixels are white.
      columns: Number of images side by side.

    Returns:
      One RGB image, 0 to 255, about 1000 pixels wide if the images allow it.

    Example:
      >>> sheet(np.zeros([10, 32, 32, 3], np.uint8), columns=5).shape
      (450, 1128, 3)
    """
    scale = max(1, round(min(_LARGEST_CELL, _TARGET_WIDTH / columns) / images.shape[2]))
    cells = to_rgb(images).repeat(scale, axis=1).repeat(scale, axis=2)
    blank = -len(cells) % columns
    cells = np.pad(cells, [(0, blank), (0, _THIN_GAP), (0, _THIN_GAP), (0, 0)], constant_values=_PAPER)
    height, width = cells.shape[1:3]
    rows = cells.reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, 3)[:-_THIN_GAP, :-_THIN_GAP]


def check_pairs(originals: np.ndarray, reconstructions: np.ndarray) -> None:
    """Check that two arrays are the same number of images of 8 bits, of 1, 3 or 4 channels and one size.

    Args:
      originals: Images.
      reconstructions: Their reconstructions.

    Raises:
      UserError: They are not.

    Example:
      >>> images = np.zeros([3, 32, 32, 3], np.uint8)
      >>> check_pairs(images, images)
    """
    for name, images in (("originals", originals), ("reconstructions", reconstructions)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
            raise UserError(
                f"`{name}` must be uint8 of shape [images, height, width, 1, 3 or 4], got {images.dtype} of shape "
                f"{images.shape}; use vqjax.data.to_uint8."
            )
    if originals.shape != reconstructions.shape:
        raise UserError(
            f"`reconstructions` must have the shape of the originals, got {reconstructions.shape} for "
            f"{originals.shape}; pass those of the same images."
        )


def to_rgb(images: UInt8[np.ndarray, "*axes channels"]) -> UInt8[np.ndarray, "*axes 3"]:
    """Convert gray to RGB, and blend transparent pixels with white.

    Args:
      images: Pixels of 1 (gray), 3 (RGB) or 4 (RGB and opacity) channels, 0 to 255.

    Returns:
      RGB, 0 to 255.

    Example:
      >>> to_rgb(np.array([[0, 0, 0, 51]], np.uint8)).tolist()
      [[204, 204, 204]]
    """
    if images.shape[-1] < 4:
        return np.broadcast_to(images, (*images.shape[:-1], 3))
    opacity = images[..., 3:].astype(np.float32) / 255
    return (images[..., :3] * opacity + _PAPER * (1 - opacity)).round().astype(np.uint8)


def _draw(
    pairs: UInt8[np.ndarray, "images 2 height width 3"], columns: int, scale: int, captions: tuple[str, str]
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    font = ImageFont.load_default(_FONT_SIZE)
    caption_width = math.ceil(max(font.getlength(caption) for caption in captions)) + 2 * _MARGIN
    cell_height, cell_width = pairs.shape[2] * scale, pairs.shape[3] * scale
    pair_height = 2 * cell_height + _THIN_GAP
    rows = math.ceil(len(pairs) / columns)
    size = (
        caption_width + columns * (cell_width + _THIN_GAP) - _THIN_GAP + _MARGIN,
        2 * _MARGIN + rows * (pair_height + _PAIR_GAP) - _PAIR_GAP,
    )
    sheet = Image.new("RGB", size, (_PAPER,) * 3)
    pen = ImageDraw.Draw(sheet)
    for row in range(rows):
        for kind, caption in enumerate(captions):
            top = _MARGIN + row * (pair_height + _PAIR_GAP) + kind * (cell_height + _THIN_GAP)
            anchor = (caption_width - _MARGIN, top + cell_height // 2)
            pen.text(anchor, caption, fill=(_INK,) * 3, font=font, anchor="rm")
            for column, pair in enumerate(pairs[row * columns : (row + 1) * columns]):
                cell = Image.fromarray(pair[kind]).resize((cell_width, cell_height), Image.Resampling.NEAREST)
                sheet.paste(cell, (caption_width + column * (cell_width + _THIN_GAP), top))
    return np.array(sheet)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "*frames height width 3"]) -> None:
    """Write an RGB image as PNG, or frames as a moving one; an older file of that name is replaced atomically.

    Args:
      path: The file; missing parent directories are created.
      image: RGB, 0 to 255; of several frames an animated PNG, which repeats :data:`FRAMES_PER_SECOND` of them a second.

    Raises:
      UserError: The image is no such array, or the path is a URL.

    Example:
      >>> import tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "black.png")
      >>> save_png(path, np.zeros([4, 6, 3], np.uint8))
      >>> with Image.open(path) as image:
      ...     image.size
      (6, 4)
    """
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
        raise UserError(
            f"`image` must be uint8 of shape [height, width, 3], got {image.dtype} of shape {image.shape}; "
            "use vqjax.data.to_uint8."
        )
    with atomic_file(path) as file:
        _write(image, file, "PNG")


def moving_gif(frames: UInt8[np.ndarray, "frames height width 3"]) -> bytes:
    """Return the content of a GIF that repeats frames, which TensorBoard shows.

    Args:
      frames: RGB, 0 to 255.

    Example:
      >>> moving_gif(np.zeros([2, 4, 6, 3], np.uint8))[:6]
      b'GIF89a'
    """
    content = io.BytesIO()
    _write(frames, content, "GIF")
    return content.getvalue()


def _write(image: UInt8[np.ndarray, "*frames height width 3"], file: Any, kind: str) -> None:
    first, *others = map(Image.fromarray, image.reshape(-1, *image.shape[-3:]))
    moves = {"save_all": True, "append_images": others, "duration": 1000 // FRAMES_PER_SECOND, "loop": 0}
    first.save(file, format=kind, **(moves if image.ndim == 4 else {}))
