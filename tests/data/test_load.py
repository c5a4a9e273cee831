import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vqjax.data import ImageDataset, load_splits
from vqjax.data.sources import with_absolute_path
from vqjax.errors import UserError


def config(**changes):
    defaults = {
        "source": "photos",
        "name": "",
        "image_size": 16,
        "train_split": "train",
        "eval_split": "test",
        "eval_fraction": 0.5,
    }
    return ConfigDict(defaults | changes)


def test_photographs():
    assert load_splits(config()).train.name == "photos/train"


def test_arrays(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((6, 8, 8, 3), np.uint8))
    splits = load_splits(config(source="arrays", name=str(tmp_path / "images.npy")))
    assert isinstance(splits.eval, ImageDataset)
    assert (len(splits.train), splits.train[0]["image"].shape) == (3, (16, 16, 3))


def test_an_image_folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    splits = load_splits(config(source="image_folder", name=str(tmp_path)))
    assert (len(splits.eval), splits.eval[0]["image"].shape) == (1, (16, 16, 3))


def test_an_unknown_source_is_refused_with_the_nearest_right_one():
    with pytest.raises(UserError, match=r"data.source must be .* got 'image_foler'; did you mean 'image_folder'\?$"):
        load_splits(config(source="image_foler"))
    with pytest.raises(UserError, match=r"use one of 'arrays', 'image_folder', .*, 'video_folder'\.$"):
        load_splits(config(source="qqq"))


def test_an_image_size_without_pixels_is_refused():
    with pytest.raises(UserError, match=r"data.image_size must be at least 1, got 0"):
        load_splits(config(image_size=0))


def test_importing_the_package_loads_no_dataset_library_it_may_not_need():
    command = "import sys, vqjax.data; print({'tensorflow', 'tensorflow_datasets', 'skimage'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_path_becomes_absolute_and_a_name_of_the_catalog_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("arrays", "image_folder"):
        assert with_absolute_path(config(source=source, name="images")).name == str(tmp_path / "images")
    assert with_absolute_path(config(source="tfds", name="cifar10")).name == "cifar10"
    assert with_absolute_path(config(source="photos")).name == ""


def test_duplicates_are_reported_where_splits_are_opened(tmp_path, warnings_logged):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train=images[:4], test=images[2:])
    load_splits(config(source="arrays", name=str(tmp_path / "images.npz")))
    assert "2 of its 4 images are exact duplicates" in warnings_logged[0]
    assert "(test[0] is train[2], test[1] is train[3])" in warnings_logged[0]
