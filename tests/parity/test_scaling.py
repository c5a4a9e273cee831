"""Scalings against the code of the tools that they are named after."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from vqjax.evaluation.scaling import SCALINGS

resize = pytest.importorskip("cleanfid.resize")
interpolation = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
transforms = pytest.importorskip("torchvision.transforms")


def pytorch_fid(image, size):
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255
    return 2 * torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False) - 1


def clean_fid(image, size):
    resized = resize.make_resizer("PIL", False, "bicubic", (size, size))(image)
    return (torch.tensor(resized).permute(2, 0, 1)[None] - 128) / 128


def from_corners(image, size):
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    return interpolation.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(size, size), align_corners=False)


def dgm_eval(image, size):
    resized = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)(Image.fromarray(image))
    return 2 * transforms.ToTensor()(resized)[None] - 1


TOOLS = {
    "pytorch-fid": pytorch_fid,
    "clean-fid": clean_fid,
    "tf1": lambda image, size: (from_corners(image, size) - 128) / 128,
    "dgm-eval": dgm_eval,
    "torch-fidelity-dinov2": lambda image, size: 2 * from_corners(image, size) / 255 - 1,
    "fvd": lambda image, size: 2 * from_corners(image, size) / 255 - 1,
}


def noise(height, width, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (height, width, 3), np.uint8)


def step():
    """An edge, which shows where a pixel lies, and beside which cubic interpolation overshoots."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[100:, 31:] = (255, 128, 7)
    return image


IMAGES = {
    "enlarged 10 times": noise(32, 32),
    "about the same size": noise(256, 256),
    "shrunk": noise(512, 512),
    "wide": noise(150, 600),
    # Pillow 13 begins with the height here, which makes a difference where anything is clipped.
    "high": noise(400, 300, 64, 192),
    "an edge": step(),
}


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_those_of_the_tools(image):
    """To a thousandth of a step of 8 bits, and to one step where the tool rounds to them."""
    for name, scaling in SCALINGS.items():
        size = 224 if name in ("dgm-eval", "torch-fidelity-dinov2", "fvd") else 299
        theirs = TOOLS[name](IMAGES[image], size)[0].permute(1, 2, 0).numpy()
        ours = np.asarray(scaling(jnp.asarray(IMAGES[image])[None], size)[0])
        tolerance = 1.01 if name == "dgm-eval" else 0.001
        np.testing.assert_allclose(127.5 * ours, 127.5 * theirs, rtol=0, atol=tolerance, err_msg=name)
