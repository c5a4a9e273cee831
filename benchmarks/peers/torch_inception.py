"""The Inception network of pytorch-fid, with random weights, which takes as long as with the published ones."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pytorch_fid import inception

from benchmarks.peers.torch_device import torch_device


def torch_features() -> Callable[[UInt8[np.ndarray, "batch height width 3"]], Float[np.ndarray, "batch 2048"]]:
    """Return the features of images as pytorch-fid computes them: scaled to 299 pixels, in float32."""
    device = torch_device()
    # The published file is not here, and need not be.
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        network = inception.InceptionV3().eval().to(device)

    def features(images: UInt8[np.ndarray, "batch height width 3"]) -> Float[np.ndarray, "batch 2048"]:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
            return network(pixels)[0][:, :, 0, 0].cpu().numpy()

    return features
