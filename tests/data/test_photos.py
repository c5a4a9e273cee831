import socket

import numpy as np
import pytest

from vqjax.data import materialize
from vqjax.data.photos import PhotoCrops, photo_splits
from vqjax.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return photo_splits(image_size=32)


def test_the_number_and_the_size_of_the_crops(splits):
    assert (len(splits.train), len(splits.eval)) == (6144, 512)
    assert (splits.train.name, splits.eval.name) == ("photos/train", "photos/eval")
    assert splits.train[0]["image"].shape == (32, 32, 3)


def test_training_and_held_out_crops_come_from_different_photographs(splits):
    def photographs(dataset):
        return {photo.tobytes() for photo in {id(photo): photo for photo, _ in dataset._crops}.values()}

    assert (len(photographs(splits.train)), len(photographs(splits.eval))) == (7, 2)
    assert not photographs(splits.train) & photographs(splits.eval)


def test_the_crops_are_the_same_in_every_run(splits):
    again = photo_splits(image_size=32)
    for index in (0, 100, 511):
        np.testing.assert_array_equal(again.train[index]["image"], splits.train[index]["image"])
        np.testing.assert_array_equal(again.eval[index]["image"], splits.eval[index]["image"])


def test_the_crops_show_near_and_far_and_stay_inside_the_photograph(splits):
    sides = []
    for photo, (left, upper, right, lower) in splits.train._crops:
        assert 0 <= left < right <= photo.width
        assert 0 <= upper < lower <= photo.height
        assert right - left == lower - upper
        sides.append(right - left)
    assert (min(sides), max(sides)) == (32, 128)


def test_hardly_any_crop_is_constant(splits):
    contrast = materialize(splits.eval)["image"].mean(-1).std((1, 2))
    assert (contrast < 3).mean() < 0.01


def test_the_first_few_crops_already_come_from_several_photographs(splits):
    assert len({id(photo) for photo, _ in splits.train._crops[:32]}) == 7
    assert len({id(photo) for photo, _ in splits.eval._crops[:8]}) == 2


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    assert photo_splits(image_size=8).train[0]["image"].shape == (8, 8, 3)


def test_image_sizes_up_to_the_smallest_photograph_work_and_larger_ones_are_refused():
    assert photo_splits(image_size=300).eval[0]["image"].shape == (300, 300, 3)
    with pytest.raises(UserError, match=r"data.image_size must be at most 300, .* got 301; use a smaller size"):
        photo_splits(image_size=301)


def test_an_incomplete_scikit_image_is_reported():
    with pytest.raises(UserError, match=r"needs missing\.png, which the installed scikit-image lacks"):
        PhotoCrops("photos", (("missing.png",),), crops_per_scene=1, image_size=8)


@pytest.mark.parametrize("channels", [1, 4])
def test_crops_need_not_be_square_or_have_three_channels(channels):
    splits = photo_splits(image_size=(8, 20), channels=channels)
    image = splits.eval[0]["image"]
    assert image.shape == (8, 20, channels)
    assert splits.eval.origin(0).startswith(("chelsea.png[", "coffee.png["))
    with pytest.raises(UserError, match=r"image_size must be at most 300, .* got \(301, 20\)"):
        photo_splits(image_size=(301, 20))
