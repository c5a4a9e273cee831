"""MSE, PSNR and SSIM against scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data, metrics

from vqjax.errors import UserError
from vqjax.evaluation.metrics import SSIM, mean_squared_error, ms_ssim, psnr, ssim


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


def test_ms_ssim_is_one_for_equal_images_and_that_of_pytorch_msssim_for_others():
    """Those of pytorch-msssim 1.0.0, ``ms_ssim(x, y, data_range=1.0, size_average=False)``."""
    x, y = (jnp.asarray(images) for images in noise(192, 208, 1))
    np.testing.assert_allclose(ms_ssim(x, x), 1, atol=1e-5)
    np.testing.assert_allclose(ms_ssim(x, y), [0.0745684, 0.0865600], atol=2e-5)
    np.testing.assert_allclose(ms_ssim(x, 0.9 * x + 0.1 * y), [0.9907324, 0.9912435], atol=2e-5)
    with pytest.raises(UserError, match="at least 176 x 176 pixels for MS-SSIM, got 175 x 200"):
        ms_ssim(x[:, :175, :200], y[:, :175, :200])


def test_an_evaluation_has_ms_ssim_from_176_pixels_on():
    x, y = noise(192, 208, 1)
    pixels = (255 * x).astype(np.uint8)
    outputs = {"image": jnp.asarray(pixels), "reconstruction": jnp.asarray(2 * y - 1)}
    expected = ms_ssim(jnp.asarray(pixels / np.float32(255)), jnp.asarray(y))
    np.testing.assert_allclose(SSIM().per_image(outputs)["ms_ssim"], expected, atol=1e-5)
    smaller = {name: rows[:, :175] for name, rows in outputs.items()}
    assert SSIM().per_image(smaller).keys() == {"ssim"}


WRONG_PAIRS = [
    (np.uint8(255), np.uint8(0), r"`x` must be floats, got uint8; divide uint8 by 255"),
    (np.float32(0.5), np.uint8(0), r"`y` must be floats, got uint8"),
]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("metric", [mean_squared_error, psnr, ssim])
@pytest.mark.parametrize(("x", "y", "message"), WRONG_PAIRS)
def test_images_whose_differences_would_wrap_around_are_refused(metric, x, y, message):
    """Bug: the mean squared error of black and white images of 8 bits was 1."""
    x, y = (np.full((2, 12, 12, 3), level) for level in (x, y))
    with pytest.raises(UserError, match=message):
        metric(x, y)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("metric", [mean_squared_error, psnr, ssim])
@pytest.mark.parametrize("shape", [(1, 12, 12, 3), (2, 12, 12, 1), (12, 12, 3)])
def test_images_that_would_be_repeated_are_refused(metric, shape):
    with pytest.raises(UserError, match="`x` and `y` must be images of one shape"):
        metric(np.zeros((2, 12, 12, 3), np.float32), np.zeros(shape, np.float32))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (2, -1)])
def test_other_ranges_are_refused(metric, scale, shift):
    """Bug: the PSNR of images in [-1, 1] came out 6 dB too low, and that of [0, 255] negative."""
    x = np.random.default_rng(0).random((2, 12, 12, 3), np.float32)
    with pytest.raises(UserError, match=r"`x` must be floats in \[0, 1\], got values from"):
        metric(scale * x + shift, scale * x + shift)
    with pytest.raises(UserError, match="not finite"):
        metric(x, np.where(x > 0.9, np.nan, x))


@pytest.mark.parametrize("channels", [1, 4])
def test_metrics_of_images_that_are_not_square_equal_scikit_image(channels):
    x, y = np.random.default_rng(0).random((2, 1, 14, 20, channels)).astype(np.float32)
    expected = reference_ssim(x[0], y[0])
    np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(y)), [expected], rtol=1e-4)
    np.testing.assert_allclose(psnr(jnp.asarray(x), jnp.asarray(y)), -10 * np.log10(((x - y) ** 2).mean()), rtol=1e-5)
