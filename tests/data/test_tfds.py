"""A real array_record dataset is written here."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.tfds import png, write_dataset
from vqjax.data import materialize
from vqjax.data.tfds import tfds_splits
from vqjax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    path = tmp_path_factory.mktemp("tfds")
    images = {"image": tfds.features.Image(shape=(None, None, 3))}
    train = [{"image": png(level)} for level in range(20)]
    test = [{"image": png(level)} for level in range(100, 110)] + [{"image": io.BytesIO(b"not an image")}]
    write_dataset(path, "levels", images, {"train": train, "test": test})
    classes = {"label": tfds.features.ClassLabel(names=["even", "odd"])}
    labelled = [{"image": png(level), "label": level % 2} for level in range(20)]
    write_dataset(path, "parities", images | classes, {"train": labelled, "test": labelled})
    write_dataset(path, "numbers", {"number": np.int64}, {"train": [{"number": 1}], "test": [{"number": 2}]})
    return path


@pytest.fixture(autouse=True)
def use_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


def test_every_image_of_a_split_is_read_and_resized():
    splits = tfds_splits("levels", 8, "train", "test[:10]")
    assert (splits.train.name, splits.eval.name) == ("levels/train", "levels/test[:10]")
    images = materialize(splits.train)["image"]
    assert images.shape == (20, 8, 8, 3)
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(20))


def test_one_by_one_and_all_at_once_give_the_same_images():
    dataset = tfds_splits("levels", 8, "train", "train").train
    np.testing.assert_array_equal(np.stack([dataset[i]["image"] for i in range(20)]), materialize(dataset)["image"])


def test_a_class_label_stays_with_its_image():
    dataset = tfds_splits("parities", 8, "train", "test").train
    assert dataset.class_names == ("even", "odd")
    examples = materialize(dataset)
    assert examples["label"].dtype == np.int32
    np.testing.assert_array_equal(examples["label"], examples["image"][:, 0, 0, 0] % 2)
    np.testing.assert_array_equal([dataset[i]["label"] for i in range(20)], examples["label"])


def test_a_dataset_without_a_class_label_has_none():
    dataset = tfds_splits("levels", 8, "train", "test").train
    assert dataset.class_names is None
    assert dataset[0].keys() == {"image"}


def test_an_image_that_cannot_be_decoded_does_not_cost_its_neighbors(warnings_logged):
    images = materialize(tfds_splits("levels", 8, "train", "test").eval)["image"]
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(100, 110))
    assert "levels/test[" in warnings_logged[0]


@pytest.mark.parametrize(
    ("name", "train_split", "message"),
    [
        ("levels", "trian", r"split 'trian' of tfds levels cannot be read .*set .* to 'train', 'test', or"),
        ("levels", "train[:0]", r"split 'train\[:0\]' of tfds levels cannot be read .* or a slice such as"),
        ("levels", "train[:1000]", r"Requested slice \[:1000\] incompatible with 20 examples"),
        ("numbers", "train", r"data.name='numbers' has no 8-bit feature called 'image' \(its features: number\)"),
        ("cifar_10", "train", r"data.name='cifar_10' is not a tensorflow-datasets name; did you mean 'cifar10'"),
        ("qqqqqq", "train", r"data.name='qqqqqq' is not a tensorflow-datasets name; its catalog lists the names"),
        ("cifar10:9.9.9", "train", r"data.name='cifar10:9.9.9' cannot be opened by tensorflow-datasets .*3\.0\.2"),
        ("", "train", r"data.name='' cannot be opened by tensorflow-datasets"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(name, train_split, message):
    with pytest.raises(UserError, match=message) as error:
        tfds_splits(name, 8, train_split, "test")
    assert "\n" not in str(error.value)


def test_without_tensorflow_an_unprepared_dataset_is_refused_without_other_noise(data_dir, monkeypatch, capfd, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name))
    with pytest.raises(UserError) as error:
        tfds_splits("cifar10", 32, "train", "test")
    assert str(data_dir) in str(error.value)
    assert "TFDS_DATA_DIR" in str(error.value)
    assert 'pip install "vqjax[tfds-prepare]"' in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_with_tensorflow_an_unprepared_dataset_is_prepared_as_array_record(monkeypatch):
    import tensorflow_datasets as tfds

    class PreparationBegan(Exception):
        pass

    def prepare(builder):
        raise PreparationBegan(builder.info.file_format.value)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    with pytest.raises(PreparationBegan, match="array_record"):
        tfds_splits("cifar10", 32, "train", "test")


def test_a_dataset_in_a_format_that_needs_tensorflow_is_refused(data_dir, tmp_path, monkeypatch):
    source, target = data_dir / "levels" / "1.0.0", tmp_path / "levels" / "1.0.0"
    target.mkdir(parents=True)
    for file in source.iterdir():
        content = file.read_bytes()
        if file.suffix == ".json":
            content = content.replace(b"array_record", b"tfrecord")
        (target / file.name.replace("array_record", "tfrecord")).write_bytes(content)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"is prepared as tfrecord in .*--file_format=array_record"):
        tfds_splits("levels", 8, "train", "test")


@pytest.mark.full
def test_reading_neither_imports_tensorflow_nor_prints_anything():
    command = (
        "import sys; from vqjax.data.tfds import tfds_splits; "
        "from vqjax.data import materialize; materialize(tfds_splits('levels', 8, 'train', 'test').train); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture
def cifar10(monkeypatch):
    real = REAL_DATA_DIR
    if real is None or not (Path(real) / "cifar10").is_dir():
        pytest.skip("TFDS_DATA_DIR does not hold cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", real)
    return tfds_splits("cifar10", 32, "train", "test")


REAL_DATA_DIR = os.environ.get("TFDS_DATA_DIR")


@pytest.mark.full
def test_cifar10_has_the_published_sizes_and_mean(cifar10):
    assert (len(cifar10.train), len(cifar10.eval)) == (50_000, 10_000)
    mean = materialize(cifar10.eval)["image"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4942, 0.4851, 0.4504], atol=1e-4)


@pytest.mark.full
def test_cifar10_has_a_thousand_test_images_of_each_class(cifar10):
    assert cifar10.eval.class_names[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(np.bincount(materialize(cifar10.eval)["label"]), [1000] * 10)


@pytest.mark.parametrize("url", ["s3://bucket/data", "gs://bucket/data"])
def test_a_data_directory_that_cannot_be_read_is_named(monkeypatch, url):
    """Bug: the storage of a cloud without its package ended in a stack trace."""
    package = "s3fs" if url.startswith("s3") else "gcsfs"
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    monkeypatch.setenv("TFDS_DATA_DIR", url)
    with pytest.raises(UserError, match=f"TFDS_DATA_DIR must be a directory that can be read, got '{url}'"):
        tfds_splits("cifar10")


def test_a_data_directory_may_be_below_home(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    monkeypatch.setenv("TFDS_DATA_DIR", f"~/{data_dir.name}")
    assert len(tfds_splits("levels", 8).train) == 20


def test_images_need_not_be_square_and_have_the_channels_that_are_asked_for():
    train = tfds_splits("levels", (8, 12), channels=1).train
    assert materialize(train)["image"].shape == (20, 8, 12, 1)
    assert train.origin(3) == "levels/train[3]"
