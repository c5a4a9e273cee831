"""Structural similarity against pytorch-msssim."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.evaluation.metrics import ms_ssim, ssim

torch = pytest.importorskip("torch")
original = pytest.importorskip("pytorch_msssim")


@pytest.mark.parametrize("noise", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("size", [(176, 256), (256, 192)])
def test_similarity_is_that_of_pytorch_msssim(noise, size):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1])) / 2
    x = np.stack([smooth, smooth**2, 1 - smooth], axis=-1)[None].astype(np.float32)
    y = np.clip(x + noise * rng.normal(size=(2, *x.shape[1:])), 0, 1).astype(np.float32)
    x = np.repeat(x, 2, axis=0)
    theirs = [torch.tensor(images.transpose(0, 3, 1, 2)) for images in (x, y)]
    for function, other in ((ssim, original.ssim), (ms_ssim, original.ms_ssim)):
        expected = other(*theirs, data_range=1.0, size_average=False).numpy()
        np.testing.assert_allclose(function(jnp.asarray(x), jnp.asarray(y)), expected, atol=2e-5)
