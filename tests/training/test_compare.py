"""Two sets of images: every image counts once, at its own size, and mistakes end in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from helpers.commands import call
from helpers.networks import dinov2
from vqjax import UserError
from vqjax.data.whole_images import whole_images
from vqjax.evaluation import Moments, frechet_distance
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.partial import PartialSums
from vqjax.evaluation.scaling import SCALINGS
from vqjax.evaluation.statistics import Statistics, save_statistics
from vqjax.training.compare import compare_images, measure_images
from vqjax.training.devices import make_mesh

RNG = np.random.default_rng(0)
SIZES = ((40, 56), (64, 64), (130, 70))


def named(features, measure="fd"):
    return f"{measure}_{FeatureNetwork.from_file(features).name}"


def write_images(directory, images):
    for number, image in enumerate(images):
        place = directory / f"{number % 3}" / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return directory


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A network of 64 features."""
    file = tmp_path_factory.mktemp("network") / "dinov2.safetensors"
    save_file(dinov2(), file)
    return str(file)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """12 images of three sizes, and 9 darker ones of one size, as files and as samples."""
    directory = tmp_path_factory.mktemp("sets")
    real = [RNG.integers(0, 256, (*SIZES[number % 3], 3), np.uint8) for number in range(12)]
    fake = RNG.integers(0, 160, (9, 64, 64, 3), np.uint8)
    np.savez(directory / "fake.npz", fake)
    return write_images(directory / "real", real), write_images(directory / "fake", fake), directory / "fake.npz"


@pytest.fixture(scope="module")
def moments(features, sets):
    """Moments of the real images and of the fake ones, each scaled and measured alone."""
    network = FeatureNetwork.from_file(features)
    apply = jax.jit(network.module.apply)

    def of_image(file):
        scaled = SCALINGS["dgm-eval"](jnp.asarray(np.asarray(Image.open(file)))[None], 224)
        return np.asarray(apply(network.variables, scaled))[0]

    return [Moments.of(np.stack([of_image(file) for file in place.rglob("*.png")])) for place in sets[:2]]


@pytest.mark.full
def test_the_distance_is_that_of_all_images_one_by_one(sets, features, moments, tmp_path, capsys):
    """In batches that do not divide their numbers."""
    output = tmp_path / "report"
    result = compare_images(real=str(sets[0]), fake=str(sets[2]), features=features, batch_size=5, output=str(output))
    np.testing.assert_allclose(result.metrics[named(features)], frechet_distance(*moments), rtol=1e-4)
    assert (result.metrics["images"], result.metrics["real_images"]) == (9, 12)
    assert set(result.metrics) == set(result.protocol)
    assert {"kd", "precision", "recall", "density", "coverage"} <= {name.split("_")[0] for name in result.metrics}
    stored = json.loads((output / "metrics.json").read_text())
    assert stored["metrics"] == result.metrics
    assert {file.name for file in output.iterdir()} == {"metrics.json", "report.md"}
    assert named(features) in (output / "report.md").read_text()
    captured = capsys.readouterr()
    assert "9 images of " in captured.err
    assert "note: a covariance of 64 features takes 65 images" in captured.err
    assert named(features) in captured.out


@pytest.mark.full
def test_files_and_samples_are_the_same_and_a_set_is_at_no_distance_from_itself(sets, features):
    _, fake, samples = sets
    numbers = compare_images(real=str(fake), fake=str(samples), features=features, batch_size=5).metrics
    assert numbers[named(features)] < 1e-6
    assert (numbers[named(features, "precision")], numbers[named(features, "coverage")]) == (1, 1)
    # All are copies.
    assert numbers[named(features, "authenticity")] == 0


class Counted:
    """Images that count how often they are read, and end early."""

    def __init__(self, images, most=None):
        self.images, self.most, self.seen = images, most, 0
        self.name, self.fingerprint = images.name, images.fingerprint

    def __len__(self):
        return len(self.images)

    def read(self, start=0):
        for image in self.images.read(start):
            if self.seen == self.most:
                raise KeyboardInterrupt
            self.seen += 1
            yield image


def test_a_set_that_was_interrupted_goes_on_behind_the_last_batch(sets, features, tmp_path):
    network, mesh = FeatureNetwork.from_file(features), make_mesh(None, {})
    options = {"batch_size": 8, "mesh": mesh}

    def measured(images, key="fake"):
        partial = PartialSums(tmp_path / "partial.npz", key, every=0.0)
        return measure_images(network, images, partial=partial, **options)

    with pytest.raises(KeyboardInterrupt):
        measured(Counted(whole_images(sets[0]), 11))
    path = PartialSums(tmp_path / "partial.npz", "fake").path
    for key, read in (("another", 12), ("fake", 4)):
        rest = Counted(whole_images(sets[0]))
        file = path.read_bytes()
        whole = measured(rest, key)
        assert rest.seen == read
        path.write_bytes(file)
        expected = measure_images(network, whole_images(sets[0]), **options)
        np.testing.assert_allclose(whole.pool.mean, expected.pool.mean, atol=1e-5)
        np.testing.assert_allclose(whole.pool.scatter, expected.pool.scatter, atol=1e-4)
        np.testing.assert_allclose(whole.sample.features, expected.sample.features, atol=1e-5)


@pytest.mark.full
def test_what_a_single_image_does_not_allow_for_is_left_out(sets, features, tmp_path, capsys):
    np.savez(tmp_path / "one.npz", RNG.integers(0, 256, (1, 64, 64, 3), np.uint8))
    numbers = compare_images(real=str(sets[0]), fake=str(tmp_path / "one.npz"), features=features, batch_size=5).metrics
    assert numbers.pop("images") == 1
    assert numbers.pop("real_images") == 12
    assert set(numbers.values()) == {None}


@pytest.mark.full
def test_statistics_take_the_place_of_real_images(sets, features, moments, tmp_path):
    identity = FeatureNetwork.from_file(features).identity
    save_statistics(tmp_path / "faces.npz", Statistics(moments[0], context={"features_identity": identity}))
    given = {"statistics": str(tmp_path / "faces.npz"), "fake": str(sets[1]), "features": features}
    numbers = compare_images(**given, batch_size=5).metrics
    np.testing.assert_allclose(numbers.pop(f"{named(features)}_to_faces"), frechet_distance(*moments), rtol=1e-4)
    assert numbers == {"images": 9}
    with pytest.raises(UserError, match=r"must be of the same features, got .*dgm-eval.* there and .*tf1.* here"):
        compare_images(**given, scaling="tf1")


def test_mistakes_end_in_one_line(sets, features, tmp_path):
    real, fake = map(str, sets[:2])
    for options, message in (
        ({}, "--real or --statistics must name what --fake is compared with, one of the two"),
        ({"real": real, "statistics": "faces.npz"}, "--real or --statistics must name"),
        ({"real": real, "batch_size": 0}, "--batch_size must be a positive integer, got 0"),
        ({"real": real, "output": features}, r"--output must be a directory to write into, got .* \(File exists\)"),
        ({"real": f"{tmp_path}"}, "--real must be a directory of images, got"),
        ({"real": real, "features": "incepton"}, "did you mean 'inception'"),
    ):
        with pytest.raises(UserError, match=message):
            compare_images(**{"fake": fake, "features": features} | options)
    (tmp_path / "cut.png").write_bytes((sets[1] / "0" / "000.png").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut.png: .*truncated.*; replace or remove that file"):
        compare_images(fake=str(tmp_path), real=real, features=features)


@pytest.mark.full
def test_the_command_compares_or_says_what_is_missing(sets, features, tmp_path):
    given = [f"--fake={sets[2]}", f"--features={features}"]
    status, out, err = call("eval.py", f"--real={sets[0]}", *given, f"--output={tmp_path}/report")
    assert status == 0, err
    assert named(features) in out
    assert (tmp_path / "report" / "report.md").is_file()
    status, out, err = call("vqjax", "eval", *given)
    assert (status, out) == (2, "")
    assert err.startswith("error: --real or --statistics must name what --fake is compared with")
