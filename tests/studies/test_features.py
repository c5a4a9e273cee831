"""The feature network that was trained here: its distance, its file, and its training."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data, filters

from studies.common.records import Results
from studies.features.__main__ import main
from studies.features.distance import FeatureDistance, feature_distance
from studies.features.training import Setting, train_network
from studies.features.weights import DIRECTORY, RECORDS, load_network, save_network
from vqjax.data import Splits
from vqjax.data.arrays import ArrayDataset
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.models.feature_discriminator import FeatureDiscriminator

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def images():
    """Crops of photographs in [-1, 1]."""
    crops = np.stack([data.astronaut()[96:128, 200:232], data.coffee()[100:132, 200:232]])
    return jnp.asarray(crops, jnp.float32) / 127.5 - 1


def test_the_distance_is_zero_for_equal_images_and_symmetric(images):
    distance = feature_distance()
    np.testing.assert_allclose(distance(images, images), 0, atol=1e-9)
    np.testing.assert_allclose(distance(images, -images), distance(-images, images), rtol=1e-5)


def test_the_distance_grows_with_noise_and_with_blur(images):
    distance = feature_distance()
    noise = jax.random.normal(jax.random.key(0), images.shape)
    noisy = [distance(images, images + scale * noise) for scale in (0.02, 0.05, 0.1, 0.2)]
    blurred = [distance(images, filters.gaussian(images, (0, sigma, sigma, 0))) for sigma in (0.5, 1, 2)]
    for distances in (noisy, blurred):
        assert (np.diff(np.stack(distances), axis=0) > 0).all()
        assert (distances[0] > 0).all()


def test_the_gradient_is_finite_where_images_are_equal_flat_or_different(images):
    gradient = jax.grad(lambda x, y: jnp.sum(feature_distance()(x, y)))
    flat = jnp.zeros_like(images)
    for x, y in ((images, images), (images, flat), (flat, images)):
        assert jnp.isfinite(gradient(x, y)).all()
    assert jnp.any(gradient(images, flat) != 0)


def test_the_metric_is_the_mean_distance_without_padding(images):
    pixels = np.asarray((images + 1) * 127.5).round().astype(np.uint8)
    batch = {"image": pixels, "valid": np.array([True, False])}
    result = evaluate(lambda batch: {"reconstruction": jnp.full(images.shape, 3.0)}, [batch], [FeatureDistance.of()])
    expected = feature_distance()(images, jnp.ones_like(images))[0]
    np.testing.assert_allclose(result.metrics["feature_distance"], expected, rtol=1e-4)


def test_a_discriminator_takes_the_network(images):
    module = FeatureDiscriminator(load_network())
    logits, _ = jax.eval_shape(functools.partial(module.init_with_output, train=False), jax.random.key(0), images)
    assert logits.shape[0] == 2


@pytest.mark.parametrize("name", [record.run for record in Results(DIRECTORY / RECORDS).records()])
def test_networks_are_small_and_a_damaged_file_is_refused(name, tmp_path):
    for file in (f"{name}.safetensors", RECORDS):
        shutil.copy(DIRECTORY / file, tmp_path)
    path = tmp_path / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    assert len(content) < 5_000_000
    load_network(name, tmp_path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"does not match its checksum; check it out"):
        load_network(name, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"it is missing or empty"):
        load_network(name, tmp_path)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"got 'cifar'; did you mean 'cifar10'\?"):
        load_network("cifar")


def _bright_and_dark(count: int, seed: int) -> ArrayDataset:
    labels = np.arange(count, dtype=np.int32) % 2
    noise = np.random.default_rng(seed).integers(0, 128, (count, 8, 8, 3), np.uint8)
    return ArrayDataset("lights", noise + np.uint8(127) * labels[:, None, None, None].astype(np.uint8), 8, labels)


@pytest.mark.full
def test_a_training_learns_and_repeats_itself_and_its_file_holds_the_network(tmp_path):
    splits = Splits(_bright_and_dark(64, 0), _bright_and_dark(32, 1))
    setting = Setting((4, 8), image_size=8, crop_padding=2, epochs=4, batch_size=16, learning_rate=0.05)
    variables, measured = train_network(splits, setting)
    assert measured["accuracy"] == 1.0
    again, _ = train_network(splits, setting)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    checksum = save_network(tmp_path / "lights.safetensors", variables)
    assert checksum == save_network(tmp_path / "again.safetensors", again)


@pytest.mark.full
def test_the_command_trains_on_a_folder_once(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            for number in range(32 if split == "train" else 4):
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
    arguments = {"data": str(tmp_path / "pets"), "epochs": 1, "records": str(tmp_path / "records")}
    main(**arguments)
    first = capsys.readouterr()
    assert "step 1/1" in first.err
    (record,) = Results(tmp_path / "records" / RECORDS).records()
    network = load_network("pets", tmp_path / "records")
    assert network.module.channels == tuple(record.settings["channels"])
    main(**arguments)
    second = capsys.readouterr()
    assert second.out == first.out
    assert "step" not in second.err
    with pytest.raises(UserError, match="epochs=1, now 2"):
        main(**(arguments | {"epochs": 2}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "{folder}/none"}, r"--data must be a folder of images, got .*none'; correct the path"),
        ({"data": "{folder}/file"}, r"--data must be a folder of images"),
        ({"epochs": 0}, r"--epochs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path):
    (tmp_path / "file").touch()
    data = arguments.get("data", "").format(folder=tmp_path) or None
    with pytest.raises(UserError, match=message):
        main(**(arguments | {"data": data, "records": str(tmp_path / "records")}))


def test_fewer_images_than_a_batch_are_refused():
    few = _bright_and_dark(4, 0)
    with pytest.raises(UserError, match=r"lights must have at least 128 images, got 4"):
        train_network(Splits(few, few), Setting())
