"""rFVD of an evaluation: against the moments of all clips at once, and closed forms."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import save_file

from helpers.networks import i3d, save_resnet
from vqjax import UserError
from vqjax.evaluation import Moments, ReconstructionFVD, evaluate, frechet_distance
from vqjax.evaluation.clip_features import ClipFeatures
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.partial import PartialSums
from vqjax.runtime.files import file_checksum


class Motion(nn.Module):
    """A linear network of clips: the color of the first frame, and how it changes until the last."""

    def __call__(self, clips):
        colors = jnp.mean(clips, axis=(2, 3))
        return jnp.concatenate([colors[:, 0], colors[:, -1] - colors[:, 0]], axis=-1)


class Colors(nn.Module):
    """A network of images: their mean colors."""

    def __call__(self, images):
        return jnp.mean(images, axis=(1, 2))


MOTION = FeatureNetwork(Motion(), {}, "i3d", "none", "fvd", None, "fvd", takes_clips=True)
RFVD = ReconstructionFVD(ClipFeatures(MOTION))
BY_FRAME = ReconstructionFVD(ClipFeatures(FeatureNetwork(Colors(), {}, "colors", "none", size=None)))
CLIPS = np.random.default_rng(0).integers(0, 256, (22, 3, 4, 6, 3), np.uint8)


def darker(batch):
    return {"reconstruction": batch["video"] / 127.5 - 1.5}


def batches(clips, size, start=0):
    """With padding in the last one, which would change every number."""
    for first in range(start, len(clips), size):
        rows = clips[first : first + size]
        padded = np.concatenate([rows, np.full((size - len(rows), *rows.shape[1:]), 255, np.uint8)])
        index = np.minimum(first + np.arange(size), len(clips) - 1)
        yield {"video": padded, "valid": np.arange(size) < len(rows), "index": index}


def as_8_bits(reconstructions):
    return np.clip(np.round((reconstructions + 1) * 127.5), 0, 255)


def motion(clips):
    """The features of :class:`Motion`, in double precision."""
    colors = (clips.astype(np.float64) / 127.5 - 1).mean(axis=(2, 3))
    return np.concatenate([colors[:, 0], colors[:, -1] - colors[:, 0]], axis=1)


def by_frame(clips):
    colors = (clips.astype(np.float64) / 127.5 - 1).mean(axis=(2, 3))
    return np.concatenate([colors.mean(axis=1), np.abs(np.diff(colors, axis=1)).mean(axis=1)], axis=1)


@pytest.mark.parametrize("size", [1, 5, 8, 22])
@pytest.mark.parametrize(("metric", "features"), [(RFVD, motion), (BY_FRAME, by_frame)])
def test_the_number_is_that_of_all_clips_at_once(size, metric, features):
    """In batches of any size, also where a network takes them in parts, and without their padding."""
    result = evaluate(darker, batches(CLIPS, size), [metric])
    shown = as_8_bits(CLIPS / np.float32(127.5) - np.float32(1.5))
    expected = frechet_distance(*(Moments.of(features(clips)) for clips in (CLIPS, shown)))
    ((name, number),) = result.metrics.items()
    assert name == ("rfvd_val" if metric is RFVD else "rfvd_colors_val")
    assert number == pytest.approx(expected, rel=1e-4)
    assert set(result.protocol) == {name}


@pytest.mark.parametrize("metric", [RFVD, BY_FRAME])
def test_the_distance_of_equal_clips_is_zero_and_of_one_clip_unknown(metric):
    def identity(batch):
        return {"reconstruction": batch["video"] / 127.5 - 1}

    assert list(evaluate(identity, batches(CLIPS, 8), [metric]).metrics.values()) == [pytest.approx(0, abs=1e-9)]
    assert list(evaluate(identity, batches(CLIPS[:1], 8), [metric]).metrics.values()) == [None]


def test_the_distance_of_gaussians_is_that_of_their_means_and_deviations():
    """Every combination of two values per feature has a diagonal covariance: |m - n|^2 + sum (s - t)^2, exactly."""
    signs = np.array(list(itertools.product((-1, 1), repeat=6)))
    deviations, shift, scale = np.array([10, 20, 5, 8, 4, 12]), np.array([3, -7, 11]), 2
    first, change = np.split(100 + signs * deviations, 2, axis=1)
    colors = np.stack([first, first + change - 100], axis=1)
    clips = np.broadcast_to(colors[:, :, None, None], (64, 2, 4, 4, 3)).astype(np.uint8)

    def contrast(batch):
        pixels = scale * (batch["video"].astype(jnp.float32) - 100) + 100 + shift[None, None, None, None]
        return {"reconstruction": pixels / 127.5 - 1}

    number = evaluate(contrast, batches(clips, 9), [RFVD]).metrics["rfvd_val"]
    expected = np.square(shift).sum() + 64 / 63 * np.square((scale - 1) * deviations).sum()
    assert number == pytest.approx(expected / 127.5**2, rel=1e-5)


def test_reconstructions_are_rounded_to_8_bits_and_clipped():
    def nearly(batch):
        return {"reconstruction": (batch["video"] + 0.4) / 127.5 - 1}

    white = np.where(CLIPS > 127, 255, 0).astype(np.uint8)
    assert evaluate(nearly, batches(CLIPS, 8), [RFVD]).metrics["rfvd_val"] == pytest.approx(0, abs=1e-9)
    beyond = evaluate(lambda batch: {"reconstruction": batch["video"] / 50 - 2.55}, batches(white, 8), [RFVD])
    assert beyond.metrics["rfvd_val"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", [RFVD, BY_FRAME])
def test_devices_that_share_clips_measure_the_same(metric):
    alone = evaluate(darker, batches(CLIPS, 11), [metric]).metrics
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])
    assert evaluate(darker, batches(CLIPS, 11), [metric], mesh=mesh).metrics == pytest.approx(alone, rel=1e-5)


def test_an_evaluation_that_was_killed_goes_on(tmp_path):
    whole = evaluate(darker, batches(CLIPS, 4), [RFVD]).metrics
    first = PartialSums(tmp_path / "partial.npz", "clips", every=0.0)
    evaluate(darker, itertools.islice(batches(CLIPS, 4), 3), [RFVD], partial=first)
    found = PartialSums(tmp_path / "partial.npz", "clips")
    assert (found.images, found.next_index) == (12, 12)
    rest = evaluate(darker, batches(CLIPS, 4, start=12), [RFVD], partial=found).metrics
    assert rest == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("features", [RFVD.features, BY_FRAME.features])
def test_gray_clips_are_seen_as_tools_read_them(features):
    gray = jnp.asarray(CLIPS[:3, ..., :1])
    np.testing.assert_array_equal(features(gray), features(jnp.tile(gray, 3)))


def test_differences_take_two_frames():
    with pytest.raises(UserError, match=r"must have at least 2 frames for differences, got shape \(22, 1, 4, 6, 3\)"):
        BY_FRAME.features(jnp.asarray(CLIPS[:, :1]))


@pytest.mark.full
def test_a_file_of_i3d_is_recognized_and_other_weights_have_another_name(tmp_path):
    """VideoGPT's file has the weights of published distances; pytorch-i3d's has the same entries."""
    published, other = tmp_path / "i3d_pretrained_400.safetensors", tmp_path / "rgb_imagenet.safetensors"
    for file in (published, other):
        save_file(i3d(), file)
    checksum = file_checksum(other)[:8]
    names = {published: "rfvd_val", other: f"rfvd_i3d_{checksum}_val"}
    for file, name in names.items():
        features = ClipFeatures(FeatureNetwork.from_file(file))
        metric = ReconstructionFVD(features, clips="7 clips of 16 frames")
        assert features.dim == 400
        assert list(metric.protocol) == [name]
        assert "7 clips of 16 frames; i3d" in metric.protocol[name]
        assert f"of SHA-256 {checksum}; images of 8 bits, 224 pixels, bilinear from corners" in metric.protocol[name]
    scaled = ClipFeatures(FeatureNetwork.from_file(published, "pytorch-fid"))
    assert list(ReconstructionFVD(scaled, "of_train_clips").protocol) == ["rfvd_pytorch_of_train_clips"]
    with pytest.raises(UserError, match="must be of a network of images, got i3d, which takes clips"):
        FeatureNetwork.from_file(published).dim  # noqa: B018
    with pytest.raises(UserError, match=r"with at least 9 frames, got shape \(1, 8, 224, 224, 3\)"):
        jax.eval_shape(features, jnp.zeros((1, 8, 16, 16, 3), jnp.uint8))


def test_a_clip_has_the_features_of_its_frames(tmp_path):
    """Twice as many as an image."""
    network = FeatureNetwork.from_file(save_resnet(tmp_path / "small.safetensors"))
    features = ClipFeatures(network)
    assert features.dim == 2 * network.dim
    by_hand = np.stack([network(jnp.asarray(clip)).pool for clip in CLIPS[:2]])
    np.testing.assert_allclose(features(jnp.asarray(CLIPS[:2]))[:, : network.dim], by_hand.mean(axis=1), rtol=1e-4)
