"""Crops of images as papers make them: by which filter an image is scaled, and what is cut out of it."""

import dataclasses
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqjax.data.images import Size, decode_image, height_and_width, resize_and_center_crop
from vqjax.errors import UserError, did_you_mean

CropName = Literal["lanczos", "bilinear", "opencv", "adm", "squash", "cut"]
RandomCropName = Literal["window", "resized", "adm"]

_BILINEAR, _BICUBIC, _BOX = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX


@dataclasses.dataclass(frozen=True)
class Crop:
    """Part of an image of any size, scaled to a given size.

    Attributes:
      center: How an image is scaled, and its center cut out. ``"lanczos"``, ``"bilinear"``: antialiased, until it just
        covers the size (``bilinear`` is ``Resize`` and ``CenterCrop`` of torchvision). ``"opencv"``: bilinear without
        antialiasing, as taming-transformers. ``"adm"``: halved by boxes while that leaves enough, then bicubic, as
        guided diffusion and its successors measure. ``"squash"``: bilinear, to the size without keeping the ratio of
        the sides. ``"cut"``: not scaled; black surrounds a smaller image.
      random: What is taken instead if there is a random number generator, in training; None for the center.
        ``"window"``: a window of the image that is scaled by ``center``, or by ``"bilinear"`` for ``"squash"``.
        ``"resized"``: 8 to 100 % of the area at a ratio of sides from 3/4 to 4/3, scaled bilinearly to the size, as
        ``RandomResizedCrop``. ``"adm"``: a window of the image that is scaled as by ``center="adm"``, but to a size up
        to 5/4 as large.

    Raises:
      UserError: A name is unknown.

    Example:
      >>> image = Image.new("RGB", (40, 30), "red")
      >>> Crop("adm")(image, 8).shape, Crop(random="window")(image, (8, 4), np.random.default_rng(0)).shape
      ((8, 8, 3), (8, 4, 3))

    Source: Dhariwal and Nichol, 2021, ``guided_diffusion/image_datasets.py``; torchvision, ``transforms``;
    taming-transformers, ``taming/data/base.py``.
    """

    center: CropName = "lanczos"
    random: RandomCropName | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("crop", self.center, get_args(CropName)),
            ("random_crop", self.random, (None, *get_args(RandomCropName))),
        ):
            if value not in choices:
                hint = did_you_mean(str(value), [choice for choice in choices if choice])
                raise UserError(f"config.data.{name}={value!r} is unknown; {hint}")

    @property
    def shrinks(self) -> bool:
        """Whether an image may be decoded at a fraction of its size, which changes its pixels a little.

        Not so for crops with exact filters of their own, nor where the size of the image itself matters.
        """
        return self.center in ("lanczos", "bilinear", "squash") and self.random in (None, "window")

    def __call__(
        self, image: Image.Image, size: Size, generator: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "height width channels"]:
        """Return the crop of an image in 8 bits per channel.

        Args:
          image: An image of any size.
          size: Height and width of the result in pixels, or one number for both.
          generator: Source of random crops; None for the center.

        Returns:
          The image, in [0, 255].
        """
        height, width = height_and_width(size)
        if generator is None or self.random is None:
            if self.center == "lanczos":
                return resize_and_center_crop(image, size)
            cropped = _center(
                self._scaled(image, height, width), height, width, rounded=self.center in ("bilinear", "cut")
            )
        elif self.random == "resized":
            cropped = image.crop(_random_box(image, generator)).resize((width, height), _BILINEAR)
        elif self.random == "adm":
            taller = int(generator.integers(height, math.ceil(height / 0.8), endpoint=True))
            scaled = _halved_then_bicubic(image, taller, round(width * taller / height))
            cropped = _window(scaled, height, width, generator)
        else:
            center = Crop("bilinear") if self.center == "squash" else self
            cropped = _window(center._scaled(image, height, width), height, width, generator)
        return np.asarray(cropped).reshape(height, width, -1)

    def decode(
        self,
        file: str | Path | io.BytesIO,
        size: Size,
        generator: np.random.Generator | None = None,
        *,
        path: str | Path,
        channels: int = 3,
    ) -> UInt8[np.ndarray, "height width {channels}"]:
        """Decode an image, and return its crop.

        Args:
          file: As for :func:`vqjax.data.images.decode_image`, like ``path`` and ``channels``.
          size: As for a call, like ``generator``.

        Returns:
          The image, in [0, 255].

        Raises:
          UnreadableImage: As :func:`vqjax.data.images.decode_image`.
        """
        crop = functools.partial(self, generator=generator)
        return decode_image(file, size, path=path, channels=channels, crop=crop, shrinks=self.shrinks)

    def _scaled(self, image: Image.Image, height: int, width: int) -> Image.Image:
        if self.center == "squash":
            return image.resize((width, height), _BILINEAR)
        if self.center == "cut":
            return image
        if self.center == "adm":
            return _halved_then_bicubic(image, height, width)
        scale = max(width / image.width, height / image.height)
        # torchvision cuts the longer side off to an integer, OpenCV's users round it.
        longer = round if self.center == "opencv" else int
        wanted = tuple(
            max(least, longer(side * scale)) for side, least in zip(image.size, (width, height), strict=True)
        )
        if self.center == "opencv":
            ratios = image.width / wanted[0], image.height / wanted[1]
            return image.transform(
                wanted, Image.Transform.AFFINE, (ratios[0], 0, 0, 0, ratios[1], 0), resample=_BILINEAR
            )
        return image.resize(wanted, Image.Resampling.LANCZOS if self.center == "lanczos" else _BILINEAR)


def same_for_all_frames(generator: np.random.Generator | None) -> Callable[[], np.random.Generator | None]:
    """Return a function whose generators all give the same random numbers, for the crops of a clip's frames.

    Args:
      generator: Source of their seed; None for no random numbers.

    Example:
      >>> again = same_for_all_frames(np.random.default_rng(0))
      >>> again().random() == again().random()
      True
    """
    seed = None if generator is None else generator.integers(2**63)
    return lambda: None if seed is None else np.random.default_rng(seed)


def _halved_then_bicubic(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image scaled until it covers a size, as guided diffusion scales."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), _BOX)
    scale = max(width / image.width, height / image.height)
    wanted = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image.resize(wanted, _BICUBIC)


def _center(image: Image.Image, height: int, width: int, *, rounded: bool) -> Image.Image:
    """The center of an image, surrounded by black if it is smaller; of an odd margin most is on the right and below.

    ``rounded`` halves an odd margin as torchvision does, to the even number next to it.
    """
    margins = (image.width - width) / 2, (image.height - height) / 2
    left, top = (round(margin) if rounded and margin > 0 else int(margin) for margin in margins)
    return image.crop((left, top, left + width, top + height))


def _window(image: Image.Image, height: int, width: int, generator: np.random.Generator) -> Image.Image:
    """A window anywhere in an image, or the center of one that is smaller."""
    left, top = (
        int(generator.integers(0, side - wanted, endpoint=True)) if side > wanted else (side - wanted) // 2
        for side, wanted in ((image.width, width), (image.height, height))
    )
    return image.crop((left, top, left + width, top + height))


def _random_box(image: Image.Image, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """The box of a random part of an image; the center if ten attempts do not lie inside."""
    for _ in range(10):
        area = image.width * image.height * generator.uniform(0.08, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(generator.integers(0, image.width - width, endpoint=True))
            top = int(generator.integers(0, image.height - height, endpoint=True))
            return left, top, left + width, top + height
    width = min(image.width, round(image.height * 4 / 3))
    height = min(image.height, round(image.width * 4 / 3))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return left, top, left + width, top + height
