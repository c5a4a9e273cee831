"""The pass over a split: padding counts nowhere, and every number equals its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from skimage import metrics as skimage_metrics

from vqjax.errors import UserError
from vqjax.evaluation import Reconstruction, evaluate

NUM_CODES = 300


def coarse(images, mask):
    """Rounds the colors; one token per 4 x 4 pixels; overshoots the range, and spoils padded images."""
    images = jnp.where(mask[:, None, None, None], images, jnp.nan)
    error = jnp.square(images - jnp.round(images * 4) / 4)
    mean_error = jnp.sum(jnp.where(mask, jnp.mean(error, axis=(1, 2, 3)), 0)) / jnp.sum(mask)
    indices = jnp.clip((images[:, ::4, ::4, 0] + 1) * 127, 0, 254).astype(jnp.int32)
    return Reconstruction(jnp.round(images * 4) / 3.5, indices, mean_error, 2 * mean_error, 3 * mean_error)


def photos(count, size=12):
    return (np.random.default_rng(0).random([count, size, size, 3]) ** 2 * 255).astype(np.uint8)


def batches(images, batch_size):
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        yield {
            "image": np.concatenate([batch, np.full([padding, *images.shape[1:]], 77, np.uint8)]),
            "valid": np.arange(batch_size) < len(batch),
        }


def test_a_padded_last_batch_changes_nothing():
    images = photos(22)
    padded = evaluate(coarse, batches(images, 8), num_codes=NUM_CODES, collect_indices=True)
    unpadded = evaluate(coarse, batches(images, 22), num_codes=NUM_CODES, collect_indices=True)
    per_batch = {"batch_size", "perplexity_batch"}
    assert {name for name, value in padded.metrics.items() if not np.isfinite(value)} == set()
    for name in padded.metrics.keys() - per_batch:
        assert padded.metrics[name] == pytest.approx(unpadded.metrics[name], rel=1e-5), name
    np.testing.assert_array_equal(padded.indices, unpadded.indices)
    np.testing.assert_array_equal(padded.originals, images[:16])
    np.testing.assert_array_equal(padded.reconstructions, unpadded.reconstructions)


def test_image_metrics_equal_their_definitions():
    images = photos(10)
    found = evaluate(coarse, batches(images, 4), num_codes=NUM_CODES).metrics
    pixels = images / 255
    output = ((np.round((pixels * 2 - 1).astype(np.float32) * 4) / 3.5 + 1) / 2).clip(0, 1)
    per_image = np.square(pixels - output).mean(axis=(1, 2, 3))
    by_color = np.square(pixels - pixels.mean(axis=(1, 2), keepdims=True)).mean(axis=(1, 2, 3))
    ssim = [
        skimage_metrics.structural_similarity(
            x, y, gaussian_weights=True, use_sample_covariance=False, data_range=1.0, channel_axis=-1
        )
        for x, y in zip(pixels, output, strict=True)
    ]
    expected = {
        "images": 10,
        "mse_01": per_image.mean(),
        "mse_pm1": np.square(2 * pixels - 2 * output).mean(),
        "variance_01": pixels.var(),
        "mse_over_variance": per_image.mean() / pixels.var(),
        "psnr": (-10 * np.log10(per_image)).mean(),
        "psnr_mean_color": (-10 * np.log10(by_color)).mean(),
        "psnr_gain": (10 * np.log10(by_color / per_image)).mean(),
        "ssim": np.mean(ssim),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_code_metrics_equal_their_definitions():
    images = photos(10)
    result = evaluate(coarse, batches(images, 4), num_codes=NUM_CODES, collect_indices=True)

    def perplexity(indices):
        shares = np.bincount(indices.ravel()) / indices.size
        return np.exp(-sum(share * np.log(share) for share in shares if share > 0))

    used = len(np.unique(result.indices))
    expected = {
        "perplexity_batch": (perplexity(result.indices[:4]) + perplexity(result.indices[4:8])) / 2,
        "perplexity_split": perplexity(result.indices),
        "usage_split": used / NUM_CODES,
        "dead_codes_split": NUM_CODES - used,
        "tokens_per_image": 9,
        "bits_per_image": 9 * np.log2(NUM_CODES),
        "entropy_bits_per_image": 9 * np.log2(perplexity(result.indices)),
    }
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)


def test_a_split_smaller_than_a_batch_still_has_a_batch_perplexity():
    metrics = evaluate(coarse, batches(photos(3), 4), num_codes=NUM_CODES).metrics
    assert metrics["perplexity_batch"] == metrics["perplexity_split"] > 1


def test_images_smaller_than_the_window_have_no_ssim():
    assert evaluate(coarse, batches(photos(4, size=8), 4), num_codes=NUM_CODES).metrics["ssim"] is None


def test_perfect_and_constant_images_stay_finite():
    def perfect(images, mask):
        return Reconstruction(images, jnp.zeros([2, 1, 1], jnp.int32), *jnp.zeros([3]))

    batch = {"image": np.full([2, 8, 8, 3], 51, np.uint8), "valid": np.full(2, True)}
    metrics = evaluate(perfect, [batch], num_codes=1).metrics
    assert metrics["psnr"] == metrics["psnr_mean_color"] == 100
    assert metrics["variance_01"] == pytest.approx(0, abs=1e-6)
    assert metrics["perplexity_split"] == 1
    assert metrics["bits_per_image"] == 0


def test_evaluations_with_new_variables_share_one_compilation():
    traces = []

    def shifted(shift, images, mask):
        traces.append(None)
        return coarse(images + shift, mask)

    errors = []
    for shift in (0.0, 0.1):
        reconstruct = jax.tree_util.Partial(shifted, jnp.float32(shift))
        errors.append(evaluate(reconstruct, batches(photos(10), 4), num_codes=NUM_CODES).metrics["mse_01"])
    assert len(traces) == 1
    assert errors[0] != errors[1]


@pytest.mark.parametrize("devices", [3, 4, 8])
def test_devices_that_share_batches_see_every_image_once(devices):
    """Also where they cannot share equally: 4 images on 3 or 8 devices, and 2 in the last batch."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    images = photos(10, size=8)
    expected = evaluate(coarse, batches(images, 4), num_codes=NUM_CODES, collect_indices=True)
    found = evaluate(coarse, batches(images, 4), num_codes=NUM_CODES, collect_indices=True, mesh=mesh)
    expected.metrics.pop("ssim"), found.metrics.pop("ssim")
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
    np.testing.assert_array_equal(found.reconstructions, expected.reconstructions)
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_progress_counts_images():
    done = []
    evaluate(coarse, batches(photos(10), 4), num_codes=NUM_CODES, progress=done.append)
    assert done == [4, 8, 10]


@pytest.mark.parametrize(
    ("num_codes", "count", "message"), [(20, 4, "num_codes=20 does not fit"), (NUM_CODES, 0, "no valid image")]
)
def test_mistakes_are_named(num_codes, count, message):
    with pytest.raises(UserError, match=message):
        evaluate(coarse, batches(photos(count), 4), num_codes=num_codes)
