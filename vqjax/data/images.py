"""Decoding of image files of any mode into square RGB arrays."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vqjax.data.dataset import UnreadableImage
from vqjax.errors import one_line

# Pillow also reads formats that start other programs (EPS); a data directory has no business doing that.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")


def check_header(path: Path) -> None:
    """Check that a file is an image, reading no more than its header.

    Args:
      path: The file.

    Raises:
      UnreadableImage: The file is empty, not an image, or claims to be absurdly large.
    """
    if path.exists() and not path.is_file():
        # Opening a named pipe would wait for somebody to write into it.
        raise UnreadableImage(path, "not a regular file")
    try:
        with Image.open(path, formats=_FORMATS):
            pass
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, one_line(error)) from error


def decode_image(file: Path | io.BytesIO, size: int, *, path: str | Path) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decode an image upright, as RGB, with the shorter side scaled to ``size`` and the center cut out.

    Transparent pixels are laid over white, 16-bit grayscale keeps its upper eight bits, and the camera's
    orientation tag is honored.

    Args:
      file: The file or its content.
      size: Side of the result in pixels.
      path: Name of the file in the error message.

    Returns:
      The square image, in [0, 255].

    Raises:
      UnreadableImage: The content is empty, truncated, not an image, or absurdly large.

    Example:
      >>> content = io.BytesIO()
      >>> Image.new("RGBA", (20, 10)).save(content, "PNG")
      >>> decode_image(content, 4, path="transparent.png")[0, 0].tolist()
      [255, 255, 255]
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # JPEG can be decoded at a fraction of its size; twice the wanted size leaves room for antialiasing.
            image.draft(image.mode, (2 * size, 2 * size))
            ImageOps.exif_transpose(image, in_place=True)
            return resize_and_center_crop(_to_rgb(image), size)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, one_line(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values to 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def resize_and_center_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scale the shorter side of an RGB image to ``size`` pixels and cut out the center.

    Scaling is antialiased (Lanczos); scaling and cutting are one operation, so nothing is rounded in between.

    Args:
      image: An RGB image of any size.
      size: Side of the result in pixels.

    Returns:
      The square image, in [0, 255].

    Example:
      >>> resize_and_center_crop(Image.new("RGB", (40, 30), "red"), 8)[0, 0].tolist()
      [255, 0, 0]
    """
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)
