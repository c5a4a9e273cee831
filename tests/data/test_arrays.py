import zipfile

import numpy as np
import pytest

from vqjax.data import materialize
from vqjax.data.arrays import ArrayDataset, array_splits
from vqjax.errors import UserError


def load(path, **changes):
    options = {"image_size": 8, "train_split": "train", "eval_split": "test", "eval_fraction": 0.2} | changes
    return array_splits(str(path), **options)


def numbered(count, shape=(8, 8, 3)):
    return np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape)) * np.ones(shape, np.uint8)


def test_npy_is_divided_into_disjoint_repeatable_splits(tmp_path):
    np.save(tmp_path / "images.npy", numbered(10))
    first, second = load(tmp_path / "images.npy"), load(tmp_path / "images.npy")
    train, evaluation = materialize(first.train)["image"], materialize(first.eval)["image"]
    assert (train.shape, evaluation.shape) == ((8, 8, 8, 3), (2, 8, 8, 3))
    assert sorted(np.concatenate([train, evaluation])[:, 0, 0, 0].tolist()) == list(range(10))
    np.testing.assert_array_equal(materialize(second.eval)["image"], evaluation)
    assert (first.train.name, first.eval.name) == ("images.npy/train", "images.npy/eval")


def test_npy_is_read_as_needed(tmp_path):
    np.save(tmp_path / "images.npy", numbered(10))
    assert isinstance(load(tmp_path / "images.npy").train._images, np.memmap)


def test_npz_has_the_splits_by_name_beside_anything_else(tmp_path):
    np.savez(tmp_path / "images.npz", train=numbered(6), test=numbered(3), labels=np.arange(6))
    splits = load(tmp_path / "images.npz")
    assert (len(splits.train), len(splits.eval)) == (6, 3)
    assert splits.eval.name == "images.npz/test"
    swapped = load(tmp_path / "images.npz", train_split="test", eval_split="train")
    assert (len(swapped.train), len(swapped.eval)) == (3, 6)


def test_npz_of_one_array_is_divided(tmp_path):
    np.savez_compressed(tmp_path / "images.npz", numbered(10))
    assert len(load(tmp_path / "images.npz").eval) == 2


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_grayscale_is_repeated_to_three_channels(tmp_path, shape):
    np.save(tmp_path / "images.npy", numbered(4, shape))
    image = load(tmp_path / "images.npy").train[0]["image"]
    assert image.shape == (8, 8, 3)
    assert (image == image[..., :1]).all()


def test_other_sizes_are_resized_and_center_cropped(tmp_path):
    images = np.zeros((4, 16, 32, 3), np.uint8)
    images[:, :, 8:24] = 200
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_allclose(load(tmp_path / "images.npy").train[0]["image"], np.full((8, 8, 3), 200), atol=12)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"must be uint8 .* got float32 of shape \[4, 8, 8, 3\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"move the channels to the end with numpy.moveaxis\(images, 1, -1\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"got uint8 of shape \[4, 8, 8, 4\]"),
        (np.zeros((64, 3), np.uint8), r"got uint8 of shape \[64, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got uint8 of shape \[0, 8, 8, 3\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"must have at least 2 readable images, .* got 1"),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, images, message):
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "images.npy")


def test_missing_names_are_refused_with_those_there_are(tmp_path):
    np.savez(tmp_path / "images.npz", training=numbered(4), validation=numbered(4))
    with pytest.raises(
        UserError, match=r"must have the arrays 'train' and 'test', .* got \['training', 'validation'\]"
    ):
        load(tmp_path / "images.npz")


def test_pickled_arrays_are_never_loaded(tmp_path):
    objects = np.array([{"code": "to be executed"}, None], dtype=object)
    np.save(tmp_path / "images.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "images.npz", train=objects, test=objects, allow_pickle=True)
    for name in ("images.npy", "images.npz"):
        with pytest.raises(UserError, match=r"cannot be read \(.*; save it again"):
            load(tmp_path / name)


def test_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "whole.npy", numbered(4))
    np.savez_compressed(tmp_path / "whole.npz", numbered(4))
    for name in ("whole.npy", "whole.npz"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 5, len(content) // 2):
            (tmp_path / f"cut{name[-4:]}").write_bytes(content[:length])
            with pytest.raises(UserError, match="cannot be read"):
                load(tmp_path / f"cut{name[-4:]}")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("train.npy", "not an array")
    with pytest.raises(UserError):
        load(tmp_path / "text.npz")


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="a path that does not exist"):
        load(tmp_path / "missing.npy")
    with pytest.raises(UserError, match=r"must be a \.npy or \.npz file, got .* another file"):
        load(tmp_path)
    (tmp_path / "images.h5").touch()
    with pytest.raises(UserError, match=r"must be a \.npy or \.npz file, got .* another file"):
        load(tmp_path / "images.h5")


def labels_of(dataset):
    return [int(dataset[i]["label"]) for i in range(len(dataset))]


def test_npz_has_labels_beside_both_splits(tmp_path):
    labels = {"train_labels": np.array([2, 0, 1, 1, 0, 2], np.uint8), "test_labels": np.array([1, 0, 4])}
    np.savez(tmp_path / "images.npz", train=numbered(6), test=numbered(3), **labels)
    splits = load(tmp_path / "images.npz")
    assert labels_of(splits.train) == [2, 0, 1, 1, 0, 2]
    assert labels_of(splits.eval) == [1, 0, 4]
    assert splits.train[0]["label"].dtype == np.int32
    # One list of classes, whichever of them a split has.
    assert splits.train.class_names == splits.eval.class_names == ("0", "1", "2", "3", "4")


def test_labels_beside_a_single_array_are_divided_with_it(tmp_path):
    np.savez(tmp_path / "images.npz", numbered(10), labels=np.arange(10) % 3)
    splits = load(tmp_path / "images.npz")
    assert (len(splits.train), len(splits.eval)) == (8, 2)
    for dataset in splits:
        levels = [int(dataset[i]["image"][0, 0, 0]) for i in range(len(dataset))]
        assert labels_of(dataset) == [level % 3 for level in levels]


def test_images_without_labels_have_none(tmp_path):
    np.savez(tmp_path / "images.npz", train=numbered(6), test=numbered(3))
    train = load(tmp_path / "images.npz").train
    assert train.class_names is None
    assert train[0].keys() == {"image"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), r"'labels' must be integers of shape \[6\], one for each image, got int64 of shape \[5\]"),
        (np.zeros((6, 1), int), r"got int64 of shape \[6, 1\]"),
        (np.int64(3), r"got int64 of shape \[\]"),
        (np.zeros(6), r"must be integers of shape \[6\], .* got float64 of shape \[6\]"),
        (np.zeros(6, bool), r"got bool of shape \[6\]"),
        (np.array(list("abcdef")), r"got <U1 of shape \[6\]"),
        (np.arange(6) - 1, r"must be class numbers from 0 to 1048575, got -1 to 4; number the classes from 0"),
        (np.full(6, 2**40), r"must be class numbers from 0 to 1048575, got 1099511627776 to 1099511627776"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "images.npz", numbered(6), labels=labels)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "images.npz")
    assert "\n" not in str(error.value)


def test_labels_of_one_split_alone_are_refused(tmp_path):
    np.savez(tmp_path / "images.npz", train=numbered(6), test=numbered(3), train_labels=np.arange(6))
    with pytest.raises(UserError, match="must have labels for both splits or for none, got no array 'test_labels'"):
        load(tmp_path / "images.npz")


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (numbered(4) / 255, None, r"digits must be uint8 .* got float64 .*\(255 \* images\).round\(\)"),
        (numbered(4).astype(np.int64), None, "got int64"),
        (numbered(4).tolist(), None, "got int64"),
        (numbered(4), ["a", "b", "c", "d"], "labels must be integers"),
        (numbered(4)[0], None, None),
        (numbered(4)[0, 0], None, r"got uint8 of shape \[8, 3\]"),
        (numbered(4), np.arange(3), r"digits: labels must be integers of shape \[4\], .* got int64 of shape \[3\]"),
        (numbered(4), np.zeros(4), "labels must be integers"),
        (numbered(4), np.array(list("abcd")), "labels must be integers"),
        (numbered(4), np.array([-1, 0, 0, 0]), "labels must be class numbers from 0 to 1048575, got -1 to 0"),
    ],
)
def test_arrays_given_by_hand_are_checked_like_those_of_files(images, labels, message):
    """Bug: floats became examples as they were, and missing labels an error in a thread."""
    if message is None:  # [8, 8, 3] may be eight gray images
        assert len(ArrayDataset("digits", images, 8, labels)) == 8
        return
    with pytest.raises(UserError, match=message):
        ArrayDataset("digits", images, 8, labels)


@pytest.mark.parametrize(("stored", "wanted"), [(1, 1), (3, 1), (1, 3), (3, 3), (4, 4)])
@pytest.mark.parametrize("size", [(8, 12), (4, 6)])
def test_images_have_the_size_and_the_channels_that_are_asked_for(tmp_path, stored, wanted, size):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 12, stored), np.uint8)
    np.save(tmp_path / "images.npy", images)
    train = load(tmp_path / "images.npy", image_size=size, channels=wanted).train
    result = materialize(train)["image"]
    assert result.shape == (5, *size, wanted)
    if size == (8, 12) and stored == wanted:
        rows = [int(train.origin(i).removeprefix("images[").rstrip("]")) for i in range(5)]
        np.testing.assert_array_equal(result, images[rows])


def test_a_fourth_channel_of_arrays_does_not_weigh_the_others(tmp_path):
    images = np.full((4, 8, 8, 4), 200, np.uint8)
    images[..., 3] = 0
    np.save(tmp_path / "images.npy", images)
    assert load(tmp_path / "images.npy", image_size=4, channels=4).train[0]["image"][0, 0].tolist() == [200] * 3 + [0]


@pytest.mark.parametrize(("stored", "channels"), [(3, 4), (1, 4), (4, 1), (4, 3)])
def test_channels_that_nothing_stands_for_are_refused(tmp_path, stored, channels):
    np.save(tmp_path / "images.npy", numbered(4, (8, 8, stored)))
    with pytest.raises(UserError, match=rf"must be uint8 .* got uint8 of shape \[4, 8, 8, {stored}\]"):
        load(tmp_path / "images.npy", channels=channels)


def test_labels_without_a_name_are_refused():
    with pytest.raises(UserError, match="digits: labels must be below 2, the classes named, got 2"):
        ArrayDataset("digits", numbered(3), 8, np.arange(3, dtype=np.int32), ("cat", "dog"))
