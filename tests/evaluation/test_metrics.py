"""MSE, PSNR and SSIM against scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data, metrics

from vqjax.errors import UserError
from vqjax.evaluation.metrics import mean_squared_error, psnr, ssim


def noise(height, width, channels):
    random = np.random.default_rng(0)
    return random.random([2, 2, height, width, channels], dtype=np.float32)


def smooth(height, width, channels):
    photo = data.astronaut()[:height, 128 : 128 + width, :channels].astype(np.float32) / 255
    noisy = photo + np.random.default_rng(0).normal(0, 0.003, photo.shape).astype(np.float32)
    return np.stack([[photo, photo / 50], [noisy, noisy / 50]]).clip(0, 1)


def reference_ssim(x, y):
    return metrics.structural_similarity(
        x.astype(np.float64),
        y.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
    )


@pytest.mark.parametrize("images", [noise, smooth])
@pytest.mark.parametrize("shape", [(11, 11, 3), (32, 32, 3), (24, 61, 1)])
def test_ssim_equals_scikit_image(images, shape):
    x, y = images(*shape)
    expected = [reference_ssim(*pair) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(jax.jit(ssim)(x, y), expected, atol=1e-5, rtol=0)


def test_psnr_and_mse_equal_scikit_image():
    x, y = smooth(32, 40, 3)
    expected = [metrics.peak_signal_noise_ratio(*pair, data_range=1.0) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(jax.jit(psnr)(x, y), expected, rtol=1e-5)
    expected = [metrics.mean_squared_error(*pair) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(jax.jit(mean_squared_error)(x, y), expected, rtol=1e-5)


def test_identical_images_have_infinite_psnr_and_ssim_one():
    x, _ = noise(16, 16, 3)
    x = jnp.asarray(x)
    assert np.isposinf(psnr(x, x)).all()
    np.testing.assert_allclose(ssim(x, x), 1, atol=1e-6)


def test_ssim_refuses_images_smaller_than_its_window():
    x, y = noise(10, 64, 3)
    with pytest.raises(UserError, match="at least 11 x 11 pixels for SSIM, got 10 x 64"):
        jax.jit(ssim)(x, y)
