"""The pass over a split: padding counts nowhere, and every number equals its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from skimage import metrics as skimage_metrics

from vqjax.errors import UserError
from vqjax.evaluation import CodeUsage, ImageCount, ImageMean, Pictures, Rows, evaluate, tokenizer_metrics

NUM_CODES = 300
METRICS = (*tokenizer_metrics(NUM_CODES), Pictures(), Rows(("indices",)))


def coarse(batch, shift=0.0):
    """Rounds the colors; one token per 4 x 4 pixels; overshoots the range, and spoils padded images."""
    images, mask = batch["image"] / jnp.float32(127.5) - 1 + shift, batch["valid"]
    images = jnp.where(mask[:, None, None, None], images, jnp.nan)
    error = jnp.square(images - jnp.round(images * 4) / 4)
    mean_error = jnp.sum(jnp.where(mask, jnp.mean(error, axis=(1, 2, 3)), 0)) / jnp.sum(mask)
    indices = jnp.clip((images[:, ::4, ::4, 0] + 1) * 127, 0, 254).astype(jnp.int32)
    return {
        "reconstruction": jnp.round(images * 4) / 3.5,
        "indices": indices,
        "quantization_error": mean_error,
        "codebook_loss": 2 * mean_error,
        "commitment_loss": 3 * mean_error,
    }


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
    padded = evaluate(coarse, batches(images, 8), METRICS)
    unpadded = evaluate(coarse, batches(images, 22), METRICS)
    per_batch = {"batch_size", "perplexity_batch"}
    assert {name for name, value in padded.metrics.items() if not np.isfinite(value)} == set()
    for name in padded.metrics.keys() - per_batch:
        assert padded.metrics[name] == pytest.approx(unpadded.metrics[name], rel=1e-5), name
    np.testing.assert_array_equal(padded.collected["indices"], unpadded.collected["indices"])
    np.testing.assert_array_equal(padded.collected["image"], images[:16])
    np.testing.assert_array_equal(padded.collected["reconstruction"], unpadded.collected["reconstruction"])


def test_image_metrics_equal_their_definitions():
    images = photos(10)
    found = evaluate(coarse, batches(images, 4), METRICS).metrics
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
    result = evaluate(coarse, batches(images, 4), METRICS)

    def perplexity(indices):
        shares = np.bincount(indices.ravel()) / indices.size
        return np.exp(-sum(share * np.log(share) for share in shares if share > 0))

    indices = result.collected["indices"]
    used = len(np.unique(indices))
    expected = {
        "perplexity_batch": (perplexity(indices[:4]) + perplexity(indices[4:8])) / 2,
        "perplexity_split": perplexity(indices),
        "usage_split": used / NUM_CODES,
        "dead_codes_split": NUM_CODES - used,
        "tokens_per_image": 9,
        "bits_per_image": 9 * np.log2(NUM_CODES),
        "entropy_bits_per_image": 9 * np.log2(perplexity(indices)),
    }
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)


def test_each_codebook_is_measured_among_its_own_codes():
    sizes, random = (8, 4), np.random.default_rng(0)
    indices = random.integers(0, sizes, (6, 2, 3, 2)).astype(np.int32)
    indices[..., 1] = np.minimum(indices[..., 1], 2)
    batch = {"indices": indices, "valid": np.arange(6) < 5}
    measured = evaluate(lambda batch: {}, [batch], [CodeUsage(sizes)]).metrics
    of_split = [np.bincount(indices[:5, ..., stage].ravel(), minlength=sizes[stage]) for stage in range(2)]
    bits = 0.0
    for stage, counts in enumerate(of_split):
        share = counts[counts > 0] / counts.sum()
        perplexity = np.exp(-np.sum(share * np.log(share)))
        assert measured[f"perplexity_split_{stage}"] == pytest.approx(perplexity)
        bits += 6 * np.log2(perplexity)
        assert measured[f"usage_split_{stage}"] == np.mean(counts > 0)
        assert measured[f"dead_codes_split_{stage}"] == np.sum(counts == 0)
    assert measured["dead_codes_split"] == sum(np.sum(counts == 0) for counts in of_split)
    assert measured["usage_split"] == pytest.approx(1 - measured["dead_codes_split"] / 12)
    assert measured["bits_per_image"] == 2 * 3 * (3 + 2)
    # The rate of coding each codebook by itself, which is not that of their mean perplexity.
    assert measured["entropy_bits_per_image"] == pytest.approx(bits)
    assert "log2(perplexity), mean over codebooks" in CodeUsage(sizes).protocol["entropy_bits_per_image"]
    with pytest.raises(UserError, match=r"num_codes=\(8, 2\), got others; pass the codebook_sizes"):
        evaluate(lambda batch: {}, [batch], [CodeUsage((8, 2))])


@pytest.mark.parametrize("size", [4, 100])
def test_usage_in_windows_counts_consecutive_images_and_tokens(size):
    """Each of its own length, whatever the batch, and without the rest that fills no window."""
    random = np.random.default_rng(0)
    indices = random.integers(0, (600, 50), (600, 300, 2), np.int32)
    indices[256:] //= 3
    batches = [
        {
            "indices": np.resize(indices[start : start + size], (size, 300, 2)),
            "valid": np.arange(start, start + size) < 600,
        }
        for start in range(0, 600, size)
    ]
    measured = evaluate(lambda batch: {}, batches, [CodeUsage((600, 50))]).metrics

    def usage(rows):
        return sum(len(np.unique(rows[..., stage])) for stage in range(2)) / 650

    tokens = indices.reshape(-1, 2)
    of_images = np.mean([usage(indices[:256]), usage(indices[256:512])])
    of_tokens = np.mean([usage(tokens[:65536]), usage(tokens[65536:131072])])
    assert measured["usage_per_256_images"] == pytest.approx(of_images)
    assert measured["usage_per_65536_tokens"] == pytest.approx(of_tokens)


def test_intervals_are_those_of_means_over_other_images():
    """As wide as theory has it for a mean, and much narrower for a difference that images share."""
    random = np.random.default_rng(0)
    values = random.normal(size=400).astype(np.float32)

    class Values(ImageMean):
        @property
        def protocol(self):
            return dict.fromkeys(("value", "difference"), "")

        def per_image(self, outputs):
            return {"value": outputs["value"], "other": outputs["value"] + 1}

        def numbers(self, means):
            return {"value": means["value"], "difference": means["other"] - means["value"]}

    batches = [{"value": part, "valid": np.arange(50) < 49} for part in values.reshape(8, 50)]
    result = evaluate(lambda batch: {}, batches, [Values(), ImageCount()], intervals=True)
    low, high = result.intervals["value"]
    kept = values.reshape(8, 50)[:, :49]
    assert low < kept.mean() < high
    assert result.metrics["value"] == pytest.approx(kept.mean())
    assert high - low == pytest.approx(2 * 1.96 * kept.std() / np.sqrt(kept.size), rel=0.1)
    assert np.ptp(result.intervals["difference"]) < 1e-6
    assert set(result.intervals) == {"value", "difference"}
    assert not evaluate(lambda batch: {}, batches, [Values()]).intervals


def test_a_split_smaller_than_a_batch_still_has_a_batch_perplexity():
    metrics = evaluate(coarse, batches(photos(3), 4), METRICS).metrics
    assert metrics["perplexity_batch"] == metrics["perplexity_split"] > 1


def test_images_smaller_than_the_window_have_no_ssim():
    assert evaluate(coarse, batches(photos(4, size=8), 4), METRICS).metrics["ssim"] is None


def test_perfect_and_constant_images_stay_finite():
    def perfect(batch):
        images = batch["image"] / jnp.float32(127.5) - 1
        return {"reconstruction": images, "indices": jnp.zeros([2, 1, 1], jnp.int32)}

    batch = {"image": np.full([2, 8, 8, 3], 51, np.uint8), "valid": np.full(2, True)}
    metrics = evaluate(perfect, [batch], tokenizer_metrics(num_codes=1)).metrics
    assert metrics["psnr"] == metrics["psnr_mean_color"] == 100
    assert metrics["variance_01"] == pytest.approx(0, abs=1e-6)
    assert metrics["perplexity_split"] == 1
    assert metrics["bits_per_image"] == 0


def test_evaluations_with_new_variables_share_one_compilation():
    traces = []

    def shifted(shift, batch):
        traces.append(None)
        return coarse(batch, shift)

    errors = []
    for shift in (0.0, 0.1):
        evaluate_batch = jax.tree_util.Partial(shifted, jnp.float32(shift))
        errors.append(evaluate(evaluate_batch, batches(photos(10), 4), METRICS).metrics["mse_01"])
    assert len(traces) == 1
    assert errors[0] != errors[1]


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("devices", [3, 4, 8])
def test_devices_that_share_batches_see_every_image_once(devices, axes):
    """Also where they cannot share equally: 4 images on 3 or 8 devices, and 2 in the last batch."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(axes,), devices=jax.devices()[:devices])
    images = photos(10, size=8)
    expected = evaluate(coarse, batches(images, 4), METRICS)
    found = evaluate(coarse, batches(images, 4), METRICS, mesh=mesh)
    expected.metrics.pop("ssim"), found.metrics.pop("ssim")
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
    for name, rows in expected.collected.items():
        np.testing.assert_array_equal(found.collected[name], rows)


class Projected(ImageMean):
    """A metric of one's own: the reconstruction seen through weights."""

    weights: jax.Array

    @property
    def protocol(self):
        return {"projected": "mean of the weighted reconstruction, mean over images"}

    def per_image(self, outputs):
        projected = jnp.einsum("bhwc,c->bhw", outputs["reconstruction"], self.weights)
        return {"projected": jnp.mean(projected, axis=(1, 2))}


def test_the_weights_of_a_metric_are_arguments_of_the_program():
    """As those of a feature network have to be, which would be huge constants of it otherwise."""
    traces = []

    def evaluate_batch(batch):
        traces.append(None)
        return {"reconstruction": batch["image"] / jnp.float32(127.5) - 1}

    evaluate_batch = jax.tree_util.Partial(evaluate_batch)
    images = photos(10)
    for weights in (np.array([1, 0, 0], np.float32), np.array([0, 0, 2], np.float32)):
        result = evaluate(evaluate_batch, batches(images, 4), [Projected(jnp.asarray(weights))])
        expected = ((images / 127.5 - 1) @ weights).mean()
        assert result.metrics == {"projected": pytest.approx(expected, rel=1e-5)}
        assert result.protocol == {"projected": "mean of the weighted reconstruction, mean over images"}
    assert len(traces) == 1


def test_metrics_see_the_entries_of_the_batch():
    labelled = ({**batch, "label": np.arange(4, dtype=np.int32)} for batch in batches(photos(6), 4))
    result = evaluate(coarse, labelled, [Rows(("label",))])
    assert result.collected["label"].tolist() == [0, 1, 2, 3, 0, 1]
    assert result.metrics == {}


@pytest.mark.parametrize("batch_size", [1, 5, 22])
def test_pictures_are_the_first_images_whatever_the_batch_size(batch_size):
    images = photos(22)
    collected = evaluate(coarse, batches(images, batch_size), [Pictures(limit=7)]).collected
    np.testing.assert_array_equal(collected["image"], images[:7])
    assert collected["reconstruction"].dtype == np.uint8


def test_progress_counts_images():
    done = []
    evaluate(coarse, batches(photos(10), 4), METRICS, progress=done.append)
    assert done == [4, 8, 10]


@pytest.mark.parametrize(
    ("num_codes", "count", "message"),
    [
        (20, 4, r"indices must be in \[0, num_codes\) with num_codes=20, got"),
        (NUM_CODES, 0, "at least one valid image, got none"),
    ],
)
def test_mistakes_are_named(num_codes, count, message):
    with pytest.raises(UserError, match=message):
        evaluate(coarse, batches(photos(count), 4), tokenizer_metrics(num_codes))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reconstruction": jnp.zeros([4, 12, 12, 3], jnp.uint8)}, "`reconstruction` must be floats in .* got uint8"),
        ({"reconstruction": jnp.zeros([4, 12, 12, 1])}, "must be images of one shape"),
        ({"reconstruction": jnp.zeros([4, 6, 6, 3])}, "must be images of one shape"),
        ({"reconstruction": jnp.zeros([1, 12, 12, 3])}, "`reconstruction` must have a row for each of the 4 images"),
        ({"indices": jnp.zeros([4, 3, 3])}, "`indices` must be integers, got float32"),
        ({"indices": jnp.zeros([1, 3, 3], jnp.int32)}, "`indices` must have a row for each of the 4 images"),
        ({"image": jnp.zeros([4, 12, 12, 3])}, "`image` of a batch must be uint8 .* got float32"),
    ],
)
def test_outputs_that_are_not_those_of_the_images_are_refused(changed, message):
    """Bug: one reconstruction was compared with all images of the batch, and bytes with numbers in [-1, 1]."""
    with pytest.raises(UserError, match=message):
        evaluate(lambda batch: coarse(batch) | changed, batches(photos(4), 4), tokenizer_metrics(NUM_CODES))
