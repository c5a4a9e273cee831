"""I3D against the same network in PyTorch, written down from the tables of the paper and the names of pytorch-i3d."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.networks import i3d
from vqjax.importing.i3d import load_i3d


@pytest.fixture(scope="module")
def arrays():
    return i3d()


def padded(x, size, strides):
    """Zeros on both sides as TensorFlow adds them, one more behind where their number is odd."""
    sides = []
    for length, wide, stride in zip(x.shape[:1:-1], size[::-1], strides[::-1], strict=True):
        total = max((-(-length // stride) - 1) * stride + wide - length, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


def pooled(x, size, strides):
    # Nothing is below zero behind a ReLU.
    return functional.max_pool3d(padded(x, size, strides), size, strides)


class Original:
    """The layers, from a state dict."""

    def __init__(self, arrays):
        self.arrays = {name: torch.tensor(array) for name, array in arrays.items()}

    def unit(self, name, x, strides=(1, 1, 1)):
        kernel = self.arrays[f"{name}.conv3d.weight"]
        x = functional.conv3d(padded(x, kernel.shape[2:], strides), kernel, stride=strides)
        norm = [self.arrays[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.relu(functional.batch_norm(x, *norm, eps=1e-3))

    def block(self, name, x):
        chains = ((x, "b0"), (x, "b1a", "b1b"), (x, "b2a", "b2b"), (pooled(x, (3, 3, 3), (1, 1, 1)), "b3b"))
        branches = []
        for branch, *units in chains:
            for unit in units:
                branch = self.unit(f"{name}.{unit}", branch)
            branches.append(branch)
        return torch.cat(branches, dim=1)

    def __call__(self, clips):
        """Logits and pooled features at each time."""
        x = self.unit("Conv3d_1a_7x7", clips, (2, 2, 2))
        x = pooled(x, (1, 3, 3), (1, 2, 2))
        x = self.unit("Conv3d_2c_3x3", self.unit("Conv3d_2b_1x1", x))
        for layer in ("pool", "3b", "3c", "pool of time", "4b", "4c", "4d", "4e", "4f", "small pool", "5b", "5c"):
            if layer == "pool":
                x = pooled(x, (1, 3, 3), (1, 2, 2))
            elif layer == "pool of time":
                x = pooled(x, (3, 3, 3), (2, 2, 2))
            elif layer == "small pool":
                x = pooled(x, (2, 2, 2), (2, 2, 2))
            else:
                x = self.block(f"Mixed_{layer}", x)
        pool = functional.avg_pool3d(x, (2, 7, 7), stride=1)
        logits = functional.conv3d(pool, self.arrays["logits.conv3d.weight"], self.arrays["logits.conv3d.bias"])
        return logits.squeeze(3).squeeze(3), pool.squeeze(3).squeeze(3)


@pytest.mark.parametrize("frames", [9, 17])
def test_features_are_those_of_pytorch(arrays, frames):
    """The fewest frames, and as many as leave two means over time."""
    clips = np.random.default_rng(0).uniform(-1, 1, (1, frames, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = Original(arrays)(torch.tensor(clips.transpose(0, 4, 1, 2, 3)))
    assert theirs[0].shape == (1, 400, 1 if frames == 9 else 2)
    module, variables = load_i3d(arrays)
    ours = jax.jit(module.apply)(variables, jnp.asarray(clips))
    for here, there in zip(ours, theirs, strict=True):
        mean = there.mean(dim=2).numpy()
        np.testing.assert_allclose(here, mean, rtol=0, atol=1e-5 * np.abs(mean).max())


def test_eight_frames_are_too_few_there_too(arrays):
    with pytest.raises(RuntimeError, match="smaller than kernel size"), torch.no_grad():
        Original(arrays)(torch.zeros(1, 3, 8, 224, 224))
