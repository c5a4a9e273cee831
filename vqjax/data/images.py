"""From an encoded image file of any mode to a square RGB array."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vqjax.data.dataset import UnreadableImage

# Pillow also reads formats that start other programs (EPS); a data directory has no business doing that.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")


def check_header(path: Path) -> None:
    """Reads only as much of an image file as tells whether it is one.

    Args:
        path: the file.

    Raises:
        UnreadableImage: the file is empty, not an image, or claims to be absurdly large.
    """
    if path.exists() and not path.is_file():
        # Opening a named pipe would wait for somebody to write into it.
        raise UnreadableImage(path, "not a regular file")
    try:
        with Image.open(path, formats=_FORMATS):
            pass
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise UnreadableImage(path, _one_line(error)) from error


def decode_image(file: Path | io.BytesIO, size: int, *, path: str | Path) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes an image upright, as RGB, with the shorter side scaled to `size` and the center cut out.

    Transparent pixels are laid over white, 16-bit grayscale keeps its upper eight bits, and the camera's
    orientation tag is honored.

    Args:
        file: the file or its content.
        size: the side of the result in pixels.
        path: what to call the file if it cannot be decoded.

    Returns:
        the square image, uint8 in [0, 255].

    Raises:
        UnreadableImage: the content is empty, truncated, not an image, or absurdly large.

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
        raise UnreadableImage(path, _one_line(error)) from error


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def resize_and_center_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales the shorter side of an RGB image to `size` pixels and cuts out the center.

    Scaling is antialiased (Lanczos); scaling and cutting are one operation, so nothing is rounded in between.

    Args:
        image: an RGB image of any size.
        size: the side of the result in pixels.

    Returns:
        the square image, uint8 in [0, 255].

    Example:
        >>> resize_and_center_crop(Image.new("RGB", (40, 30), "red"), 8)[0, 0].tolist()
        [255, 0, 0]
    """
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)
