"""rFID of an evaluation: what it makes of batches, and what it reads."""

import pickle
import shutil
import zipfile

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import save_file

from vqjax import UserError
from vqjax.evaluation import Moments, ReconstructionFID, evaluate, frechet_distance, inception_score
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.fid import SAMPLE, FeatureMoments, Sample, wrapped_to_uint8
from vqjax.evaluation.scaling import SCALINGS
from vqjax.evaluation.statistics import check_features, load_statistics, save_statistics
from vqjax.importing.inception import load_inception
from vqjax.models.inception import FIDInception, InceptionFeatures
from vqjax.runtime.files import file_checksum
from vqjax.training.evaluate import evaluate_workdir


class Colors(nn.Module):
    """A network of three features: mean colors."""

    shape: tuple[int, ...] = (299, 299, 3)

    @nn.compact
    def __call__(self, images):
        assert images.shape[1:] == self.shape
        colors = jnp.mean(images, axis=(1, 2))
        return InceptionFeatures(colors, 5 * colors, colors)


COLORS = FeatureNetwork(Colors(), {}, name="inception", weights="none")


def darker(batch):
    return {"reconstruction": batch["image"] / 127.5 - 1.5}


def batches(images, size):
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), np.uint8)])
        yield {"image": padded, "valid": np.arange(size) < len(rows)}


IMAGES = np.random.default_rng(0).integers(0, 256, (22, 4, 6, 3), np.uint8)


@pytest.mark.parametrize("size", [5, 8])
def test_the_numbers_are_those_of_all_images_at_once(size):
    result = evaluate(darker, batches(IMAGES, size), [ReconstructionFID(COLORS)])
    shown = np.clip(np.round(IMAGES.astype(np.float32) - 127.5 * 0.5), 0, 255)
    # Scaling up repeats the mean of some rows more often, so that the means come from the same function.
    of_originals, of_others = (
        np.asarray(SCALINGS["pytorch-fid"](jnp.asarray(pixels.astype(np.uint8)), 299)).mean(axis=(1, 2))
        for pixels in (IMAGES, shown)
    )
    expected = frechet_distance(Moments.of(of_originals), Moments.of(of_others))
    np.testing.assert_allclose(result.metrics["rfid_val"], expected, rtol=1e-3)
    score, deviation = inception_score(5 * of_others)
    np.testing.assert_allclose([result.metrics["ris"], result.metrics["ris_deviation"]], [score, deviation], rtol=1e-2)
    assert set(result.metrics) == set(result.protocol)


@pytest.mark.parametrize("devices", [3, 8])
def test_devices_that_share_images_measure_the_same(devices):
    """Also where they cannot share equally, and where a network takes the images in parts."""
    images = np.random.default_rng(1).integers(0, 256, (90, 4, 6, 3), np.uint8)
    metric = ReconstructionFID(FeatureNetwork(Colors((4, 6, 3)), {}, "small", "none", size=None), wrapped=True)
    alone = evaluate(darker, batches(images, 50), [metric]).metrics
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    together = evaluate(darker, batches(images, 50), [metric], mesh=mesh).metrics
    assert together.pop("rkd_small_val_deviation") is alone.pop("rkd_small_val_deviation") is None
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-9)


def test_what_needs_more_images_is_left_out():
    metric = ReconstructionFID(COLORS)
    few = evaluate(darker, batches(IMAGES[:9], 4), [metric]).metrics
    assert few["rfid_val"] > 0
    assert few["ris"] is few["ris_deviation"] is None
    assert evaluate(darker, batches(IMAGES[:1], 4), [metric]).metrics["rfid_val"] is None


def test_images_that_are_not_finite_are_named():
    def reconstruct(batch):
        return {"reconstruction": jnp.zeros(batch["image"].shape)}

    def broken(batch):
        return {"reconstruction": jnp.zeros(batch["image"].shape).at[2].set(jnp.nan)}

    with pytest.raises(UserError, match="features must be finite, got others for image 1, counted"):
        evaluate(reconstruct, batches(IMAGES, 4), [NotRounded(COLORS)])
    # Bug: in 8 bits they were black images.
    with pytest.raises(UserError, match="reconstructions must be finite, got another for example 2, counted from 0"):
        evaluate(broken, batches(IMAGES, 4), [ReconstructionFID(COLORS)])


def test_the_distance_from_other_images_is_that_of_their_file(tmp_path):
    """Written by a run here, or by another tool, which says no number of images."""
    moments = FeatureMoments(COLORS)
    measured = evaluate(jax.tree_util.Partial(lambda batch: {}), batches(IMAGES, 5), [moments])
    own = moments.statistics_of(measured.collected, {"dataset": "colors", "features_identity": COLORS.identity})
    assert own.pool.count == len(IMAGES)
    save_statistics(tmp_path / "own.npz", own)
    np.savez(tmp_path / "other.npz", mu=own.pool.mean + 2, sigma=own.pool.covariance)
    own_distance, numbers = None, {}
    for name in ("own", "other"):
        statistics = load_statistics(tmp_path / f"{name}.npz")
        check_features(statistics, COLORS.identity, COLORS.dim)
        metric = ReconstructionFID(COLORS, others=((f"to_{name}", statistics),))
        result = evaluate(darker, batches(IMAGES, 8), [metric])
        assert "SHA-256" in result.protocol[f"rfid_to_{name}"]
        own_distance, numbers[name] = result.metrics["rfid_val"], result.metrics[f"rfid_to_{name}"]
    np.testing.assert_allclose(numbers["own"], own_distance, rtol=1e-4)
    assert numbers["other"] > own_distance + 1


def save_like_torch(path, content):
    """An archive of torch.save, whose arrays are NumPy's."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))


def test_statistics_of_other_tools_are_read(tmp_path):
    """Guided diffusion adds the features with a place, and images; torch-fidelity stores a .pt without tensors."""
    rng = np.random.default_rng(0)
    of_pool, of_places = (np.cov(rng.normal(size=(9, dim)), rowvar=False) for dim in (3, 4))
    published = {"mu": rng.normal(size=3), "sigma": of_pool}
    np.savez(
        tmp_path / "adm.npz", **published, mu_s=np.ones(4), sigma_s=of_places, arr_0=np.zeros((2, 4, 4, 3), np.uint8)
    )
    save_like_torch(tmp_path / "fidelity.pt", published | {"mu": published["mu"].astype(np.float32)})
    save_like_torch(tmp_path / "columns.pt", published | {"sigma": np.asfortranarray(of_pool)})
    for name, tolerance in (("adm.npz", 0), ("fidelity.pt", 1e-6), ("columns.pt", 0)):
        statistics = load_statistics(tmp_path / name)
        np.testing.assert_allclose(statistics.pool.mean, published["mu"], rtol=tolerance)
        np.testing.assert_array_equal(statistics.pool.covariance, of_pool)
        assert name in statistics.described
    spatial = load_statistics(tmp_path / "adm.npz").spatial
    np.testing.assert_array_equal(spatial.covariance, of_places)
    for wrong in ({"mu": np.array([None]), "sigma": of_pool}, {"mu": np.zeros(3, ">f8"), "sigma": of_pool}):
        save_like_torch(tmp_path / "wrong.pt", wrong)
        with pytest.raises(UserError, match=r"wrong\.pt must hold"):
            load_statistics(tmp_path / "wrong.pt")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mu": np.zeros(3)},
            "must hold the arrays mu and sigma .*; pass an .npz of vqjax stats, pytorch-fid",
        ),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"finite mean and covariance .*, got shapes \(3,\) and \(2, 2\)"),
        ({"mu": np.zeros(1), "sigma": np.full((1, 1), np.nan)}, "must hold a finite mean and covariance of at least 2"),
        ({"mu": np.array([np.nan]), "sigma": np.eye(1)}, "must hold a finite mean and covariance of at least 2"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "context": "[]"}, "must hold a finite mean and covariance"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "count": [1, 2]}, "must hold the arrays mu and sigma"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "must hold the arrays mu and sigma .*allow_pickle=False"),
    ],
)
def test_a_file_without_statistics_is_refused(arrays, message, tmp_path):
    """One that would have to be executed, too."""
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_statistics(tmp_path / "wrong.npz")
    with pytest.raises(UserError, match="No such file"):
        load_statistics(tmp_path / "missing.npz")


def test_a_damaged_file_of_statistics_is_refused(tmp_path):
    """Bug: errors of the archive ended with a stack trace."""
    np.savez(tmp_path / "cut.npz", mu=np.zeros(64), sigma=np.eye(64))
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.npz").write_bytes(content[:5000] + bytes([content[5000] ^ 255]) + content[5001:])
    np.save(tmp_path / "array.npy", np.eye(2))
    for name in ("cut.npz", "flipped.npz", "array.npy"):
        with pytest.raises(UserError, match="must hold the arrays mu and sigma"):
            load_statistics(tmp_path / name)


@pytest.mark.full
def test_the_network_is_in_32_bits_whatever_the_default_is():
    """Bug: the number of pixels of a window made its mean a float64."""
    network = FIDInception()
    with jax.enable_x64(True):
        images = jnp.zeros((1, 299, 299, 3), jnp.float32)
        outputs = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


class NotRounded(ReconstructionFID):
    """The metric of a network that diverges, as 8 bits cannot."""

    def measure(self, outputs):
        measured = super().measure(outputs)
        originals, *others = measured["features"]
        wrong = originals._replace(pool=originals.pool.at[1].set(jnp.nan))
        return measured | {"features": [wrong, *others]}


def test_images_that_wrap_around_have_their_own_distance():
    """One level beyond white is black in the rotation trick's code, and white where pixels are clipped."""
    assert wrapped_to_uint8(jnp.array([[[[1.0, 1.0 + 1 / 127, -1.01]]]])).ravel().tolist() == [255, 0, 255]

    def beyond(batch):
        return {"reconstruction": batch["image"] / 127.5 - 1 + 0.01}

    white = np.full_like(IMAGES, 255)
    measured = evaluate(beyond, batches(white, 8), [ReconstructionFID(COLORS, wrapped=True)])
    assert measured.metrics["rfid_val"] < 1e-6
    assert measured.metrics["rfid_rotation_trick"] > 1
    assert set(measured.metrics) == set(measured.protocol)
    assert "ris_rotation_trick" in measured.metrics
    # Those of training images are not what the paper prints.
    other = ReconstructionFID(COLORS, "of_train_images", wrapped=True).protocol
    assert {"rfid_rotation_trick_of_train_images", "ris_rotation_trick_of_train_images"} < other.keys()
    assert "rfid_rotation_trick" not in other


def test_a_sample_is_the_same_for_all_batch_sizes():
    features = np.arange(2 * SAMPLE + 77, dtype=np.float32)[:, None]
    kept = []
    for size in (SAMPLE, 4999, 2 * SAMPLE + 77):
        sample = Sample()
        for start in range(0, len(features), size):
            sample = sample.added(features[start : start + size])
            assert sum(map(len, sample.rows)) <= 2 * SAMPLE + size
        kept.append(sample.features)
    assert all(np.array_equal(kept[0], other) for other in kept)
    chosen = kept[0][:, 0]
    assert len(chosen) == SAMPLE
    assert (np.diff(chosen) > 0).all()
    # Evenly from all places: 10,000 of 20,077 within four standard deviations.
    assert abs((chosen < len(features) / 2).sum() - SAMPLE / 2) < 4 * np.sqrt(SAMPLE / 8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with the entries of pytorch-fid's, and random numbers that keep the size of features."""
    module, rng = FIDInception(), np.random.default_rng(0)
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    arrays = {"fc.bias": np.ones(1008, np.float32)}
    for path, leaf in flax.traverse_util.flatten_dict(like).items():
        name = ".".join(path[:-1])
        if path[-1] == "kernel":
            kernel = rng.normal(size=leaf.shape, scale=(2 / np.prod(leaf.shape[:-1])) ** 0.5).astype(np.float32)
            arrays[f"{name}.weight"] = np.ascontiguousarray(
                kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
            )
            if kernel.ndim == 4:
                unit = name.removesuffix(".conv")
                channels = np.ones(leaf.shape[-1], np.float32)
                arrays |= {f"{unit}.bn.{name}": channels for name in ("weight", "running_var")}
                arrays |= {f"{unit}.bn.{name}": 0 * channels for name in ("bias", "running_mean")}
                arrays[f"{unit}.bn.num_batches_tracked"] = np.array(7, np.int64)
    file = tmp_path_factory.mktemp("published") / "inception.safetensors"
    save_file(arrays, file)
    return file, arrays


@pytest.mark.full
def test_the_network_has_the_size_of_the_original(published):
    """94 convolutions with norms, and 1,008 classes: 23,850,960 parameters in pytorch-fid."""
    arrays = published[1]
    assert sum(name.endswith("conv.weight") for name in arrays) == 94
    learned = [array for name, array in arrays.items() if name.endswith(("weight", ".bias"))]
    assert sum(array.size for array in learned) == 23_850_960


@pytest.mark.full
def test_what_is_missing_in_a_file_is_named(published):
    arrays = dict(published[1])
    del arrays["Mixed_7c.branch1x1.bn.bias"]
    with pytest.raises(UserError, match=r"missing \['Mixed_7c.branch1x1.conv.bias'\] and surplus .*pt_inception-2015"):
        load_inception(arrays)


@pytest.mark.full
def test_an_evaluation_reports_it_with_its_protocol(published, finished, tmp_path):
    """What does not depend on the network is in tests/training/test_protocols.py."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    result = evaluate_workdir(workdir, features=str(published[0]))
    name = f"inception_{file_checksum(published[0])[:8]}"  # as the weights are not the published ones
    assert result.metrics[f"rfd_{name}_val"] > 0
    assert result.metrics[f"rsfid_{name}_val"] > 0
    assert result.metrics[f"ris_{name}"] >= 1
    assert f"{name} of SHA-256" in (workdir / "eval" / "report.md").read_text()
