"""Decoded examples are kept, found again, and never those of other images."""

import os

import numpy as np
import pytest
from PIL import Image

from vqjax.data import decoded as kept
from vqjax.data import materialize
from vqjax.data.decoded import read_decoded
from vqjax.data.image_folder import image_folder_splits
from vqjax.data.photos import photo_splits
from vqjax.data.statistics import pixel_variance


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vqjax" / "decoded"


@pytest.fixture
def folder(tmp_path):
    """Three training images of each of two classes, and one held out of each."""
    for split, count in (("train", 3), ("test", 1)):
        for name, color in (("dark", 40), ("light", 200)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                path = tmp_path / "images" / split / name / f"{i}.png"
                Image.new("RGB", (12, 10), (color + i, color, color)).save(path)
    return tmp_path / "images"


def train(folder, **options):
    return image_folder_splits(folder, image_size=8, **options).train


def test_the_second_reading_finds_the_examples_of_the_first(folder, cache):
    first = materialize(train(folder))
    (file,) = cache.iterdir()
    again = read_decoded(train(folder))
    assert again.keys() == first.keys() == {"image", "label"}
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype
    materialize(train(folder))
    assert list(cache.iterdir()) == [file]


def test_the_variance_is_the_same(folder):
    before = pixel_variance(train(folder))
    materialize(train(folder))
    assert pixel_variance(train(folder)) == before


def test_other_images_sizes_and_crops_are_read_anew(folder):
    materialize(train(folder))
    assert read_decoded(train(folder, crop="bilinear")) is None
    assert read_decoded(image_folder_splits(folder, image_size=4).train) is None
    Image.new("RGB", (12, 10), "red").save(folder / "train" / "dark" / "1.png")
    changed = train(folder)
    assert read_decoded(changed) is None
    assert materialize(changed)["image"][1].tolist() == [[[255, 0, 0]] * 8] * 8


def test_a_pixel_in_the_middle_of_a_large_file_counts(folder):
    path = folder / "train" / "dark" / "1.bmp"
    image = Image.new("RGB", (512, 512), "red")
    image.save(path)
    materialize(train(folder))
    image.paste("blue", (200, 200, 300, 300))
    image.save(path)
    assert read_decoded(train(folder)) is None


def test_a_damaged_file_and_one_of_another_decoder_are_not_used(folder, cache, monkeypatch):
    materialize(train(folder))
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:200], content[:-4] + b"\7\7\7\7"):
        file.write_bytes(damaged)
        assert read_decoded(train(folder)) is None
    file.write_bytes(content)
    assert read_decoded(train(folder)) is not None
    monkeypatch.setattr(kept, "version", lambda package: "another")
    assert read_decoded(train(folder)) is None


def test_images_that_cannot_be_read_are_not_kept(folder, cache):
    images = train(folder)
    (folder / "train" / "dark" / "1.png").write_bytes(b"")
    assert len(materialize(images)["image"]) == 5
    assert not cache.exists() or not list(cache.iterdir())


def test_what_was_used_longest_ago_makes_room(cache, monkeypatch):
    sizes = [materialize(photo_splits(size).eval)["image"].nbytes for size in (8, 10)]
    old, new = sorted(cache.iterdir(), key=lambda file: file.stat().st_size)
    os.utime(new, (1, 1))
    assert read_decoded(photo_splits(8).eval) is not None
    monkeypatch.setattr(kept, "_MOST_BYTES", sizes[0] + sizes[1])
    materialize(photo_splits(9).eval)
    assert old.exists()
    assert not new.exists()
    monkeypatch.setattr(kept, "_MOST_BYTES", sizes[0] // 2)
    materialize(photo_splits(7).eval)
    assert old.exists()
