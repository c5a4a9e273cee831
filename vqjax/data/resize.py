"""The one way in which images of any size become square images of the wanted size."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


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
