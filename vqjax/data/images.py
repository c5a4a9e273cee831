"""Decoding of image files of any mode into arrays of one size and number of channels."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from vqjax.data.dataset import UnreadableImage
from vqjax.errors import UserError, one_line

# Pillow also reads formats that start other programs (EPS); a data directory has no business doing that.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ON_ITS_SIDE = range(5, 9)  # values of the orientation tag

LARGEST_SIDE = 4096

Size = int | tuple[int, int]
"""Height and width in pixels; a single number is both."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow has; it refuses every file when asked for one that it lacks."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that :func:`decode_image` reads, in lower case."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _formats())


def height_and_width(size: Size | Sequence[int]) -> tuple[int, int]:
    """Return height and width of images.

    Args:
      size: Both, or one number for square images.

    Raises:
      UserError: It is neither, or out of range.

    Example:
      >>> height_and_width(32), height_and_width((32, 48))
      ((32, 32), (32, 48))
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise UserError(f"config.data.image_size must be one number, or height and width, got {size}.")
    if min(sides) < 1:
        raise UserError(
            f"config.data.image_size must be at least 1, got {size}; set it to the side of the images in pixels."
        )
    if max(sides) > LARGEST_SIDE:
        raise UserError(f"config.data.image_size must be from 1 to {LARGEST_SIDE}, got {size}.")
    return sides


def check_channels(channels: int) -> None:
    """Refuse numbers of channels that images do not have.

    Args:
      channels: Number of channels of the images.

    Raises:
      UserError: It is not 1, 3 or 4.
    """
    if channels not in _MODES:
        raise UserError(
            f"config.data.channels must be 1 (gray), 3 (RGB) or 4 (RGB and opacity), got {channels}; use one of them."
        )


def check_header(path: str | Path) -> None:
    """Check that a file is an image, reading no more than its header.

    Args:
      path: The file.

    Raises:
      UnreadableImage: The file is empty, not an image, or claims to be absurdly large.
    """
    check_regular_file(path)
    try:
        with Image.open(path, formats=_formats()):
            pass
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, one_line(error)) from error


def check_regular_file(path: str | Path) -> None:
    """Refuse what must not be opened: a named pipe would wait for somebody to write into it.

    Args:
      path: The file.

    Raises:
      UnreadableImage: It is a pipe, a device or a directory.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise UnreadableImage(path, "not a regular file")


def decode_image(
    file: str | Path | io.BytesIO,
    size: Size,
    *,
    path: str | Path,
    channels: int = 3,
    crop: Callable[[Image.Image, Size], UInt8[np.ndarray, "height width _"]] | None = None,
    shrinks: bool = True,
) -> UInt8[np.ndarray, "height width {channels}"]:
    """Decode an image upright, and take a part of it; by default as :func:`resize_and_center_crop`.

    Transparent pixels are laid over white unless there are four channels, 16 bits a pixel keep their upper eight, the
    camera's orientation tag is honored, and of several frames or pages the first is taken.

    Args:
      file: The file or its content.
      size: Height and width of the result in pixels, or one number for both.
      path: Name of the file in the error message.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.
      crop: Function of the image and the size that returns what is taken, such as a :class:`vqjax.data.crops.Crop`.
      shrinks: Allow a JPEG to be decoded at a fraction of its size, at least twice that of the result.

    Returns:
      The image, in [0, 255].

    Raises:
      UnreadableImage: The content is empty, truncated, not an image, absurdly large, or of pixels without a range.

    Example:
      >>> content = io.BytesIO()
      >>> Image.new("RGBA", (20, 10)).save(content, "PNG")
      >>> decode_image(content, 4, path="transparent.png")[0, 0].tolist()
      [255, 255, 255]
      >>> decode_image(content, (2, 6), path="transparent.png", channels=4).shape
      (2, 6, 4)
    """
    height, width = height_and_width(size)
    try:
        with Image.open(file, formats=_formats()) as image:
            # JPEG can be decoded at a fraction of its size; twice the wanted size leaves room for antialiasing.
            if shrinks:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
                as_stored = (height, width) if turned else (width, height)
                image.draft(image.mode, (2 * as_stored[0], 2 * as_stored[1]))
            ImageOps.exif_transpose(image, in_place=True)
            return (crop or resize_and_center_crop)(with_channels(image, channels), size)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, one_line(error)) from error


def decode_as_stored(file: str | Path | io.BytesIO, *, path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a whole image as tools of evaluation do: at its own size, not turned upright, and without its opacity.

    Args:
      file: The file or its content.
      path: Name of the file in the error message.

    Returns:
      The image in color, in [0, 255].

    Raises:
      UnreadableImage: The content is no image, or one of more than 8 bits, which these tools clip.

    Example:
      >>> content = io.BytesIO()
      >>> Image.new("LA", (20, 10), (7, 0)).save(content, "PNG")
      >>> decode_as_stored(content, path="transparent.png")[0, 0].tolist()
      [7, 7, 7]
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels of mode {image.mode} have more than 8 bits")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, one_line(error)) from error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to 8 bits and a number of channels.

    Args:
      image: The image.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Returns:
      The image; without a channel of opacity its transparent pixels lie over white.

    Raises:
      ValueError: Its pixels have no known range.

    Example:
      >>> with_channels(Image.new("RGB", (1, 1), "white"), 1).getpixel((0, 0))
      255
    """
    mode = _MODES[channels]
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("pixels of floating-point numbers have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("pixels of 32 bits have no known range")
        # Pillow's own conversion clips 16-bit values to 255 instead of scaling them.
        return Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    if image.has_transparency_data and channels != 4:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    return image.convert(mode)


def resize_and_center_crop(image: Image.Image, size: Size) -> UInt8[np.ndarray, "height width channels"]:
    """Scale an image until it just covers a size, and cut out the center.

    Scaling is antialiased (Lanczos); scaling and cutting are one operation, so nothing is rounded in between.

    Args:
      image: An image of any size, in 8 bits per channel.
      size: Height and width of the result in pixels, or one number for both.

    Returns:
      The image, in [0, 255].

    Example:
      >>> resize_and_center_crop(Image.new("RGB", (40, 30), "red"), 8)[0, 0].tolist()
      [255, 0, 0]
      >>> resize_and_center_crop(Image.new("L", (40, 30)), (8, 16)).shape
      (8, 16, 1)
    """
    height, width = height_and_width(size)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, -1)
