"""Crops beside torchvision's transforms of Pillow images: equal to the bit."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from vqjax.data.crops import Crop

SHAPES = [(33, 49), (70, 40), (16, 16), (100, 131), (17, 40), (9, 12)]


def picture(shape):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_center_crops_are_those_of_torchvision(shape):
    image, cut = picture(shape), transforms.CenterCrop(16)
    resized = transforms.Compose([transforms.Resize(16), cut])
    np.testing.assert_array_equal(Crop("bilinear")(image, 16), resized(image))
    np.testing.assert_array_equal(Crop("cut")(image, 16), cut(image))
    np.testing.assert_array_equal(Crop("squash")(image, 16), transforms.Resize((16, 16))(image))
