import os

import numpy as np
import pytest
from PIL import Image

from vqjax.data import materialize
from vqjax.data.image_folder import image_folder_splits
from vqjax.errors import UserError


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(path)


def load(directory, **changes):
    options = {"image_size": 4, "train_split": "train", "eval_split": "test", "eval_fraction": 0.25} | changes
    return image_folder_splits(str(directory), **options)


def levels(dataset):
    return [int(dataset[i]["image"][0, 0, 0]) for i in range(len(dataset))]


def test_split_directories_are_used_and_searched_below_in_sorted_order(tmp_path):
    save(tmp_path / "train" / "b" / "1.png", 30)
    save(tmp_path / "train" / "a" / "2.png", 20)
    save(tmp_path / "train" / "a" / "1.png", 10)
    save(tmp_path / "test" / "1.png", 40)
    splits = load(tmp_path)
    assert levels(splits.train) == [10, 20, 30]
    assert levels(splits.eval) == [40]
    assert (splits.train.name, splits.eval.name) == (f"{tmp_path.name}/train", f"{tmp_path.name}/test")
    assert materialize(splits.train)["image"].shape == (3, 4, 4, 3)


def test_otherwise_a_fraction_is_held_out_and_the_splits_are_disjoint_and_repeatable(tmp_path):
    for level in range(20):
        save(tmp_path / f"{level:02}.png", level)
    first, second = load(tmp_path), load(tmp_path)
    assert len(first.eval) == 5
    assert sorted(levels(first.train) + levels(first.eval)) == list(range(20))
    assert levels(first.eval) == levels(second.eval)


def test_all_suffixes_in_any_case_are_images_and_other_files_are_not(tmp_path):
    for name in ("a.jpg", "b.JPEG", "c.PNG", "d.webp", "e.WebP"):
        save(tmp_path / name, 100)
    (tmp_path / "notes.txt").write_text("not an image")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.eval) == 5


def test_files_without_an_image_header_are_skipped_named_and_counted(tmp_path, warnings_logged):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.eval) == 2
    assert "empty.jpg" in warnings_logged[0]
    assert "text.png" in warnings_logged[1]
    assert warnings_logged[2].endswith("skipped 2 unreadable images of 4")


def test_a_truncated_file_is_found_when_it_is_read(tmp_path, warnings_logged):
    for level in range(4):
        save(tmp_path / "train" / f"{level}.png", level)
        save(tmp_path / "test" / f"{level}.png", level)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "1.png")
    os.truncate(tmp_path / "train" / "1.png", 500)
    splits = load(tmp_path)
    assert len(splits.train) == 4
    assert materialize(splits.train)["image"][:, 0, 0, 0].tolist() == [0, 2, 3]
    assert "1.png" in warnings_logged[0]


def test_links_that_form_a_loop_are_followed_once(tmp_path):
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "a" / "2.png", 2)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "broken.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.eval) == 2


def test_linked_directories_are_searched(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", 1)
    save(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(load(tmp_path / "data").train) == 1


def test_one_of_two_split_directories_is_refused_rather_than_mixed_into_training(tmp_path):
    save(tmp_path / "train" / "1.png", 1)
    save(tmp_path / "val" / "1.png", 2)
    with pytest.raises(
        UserError, match=r"data.eval_split must be a sub.* as train is, got 'test'; set it to one of \['val'\]"
    ):
        load(tmp_path)
    with pytest.raises(
        UserError, match=r"data.train_split must be a sub.* as val is, got 'training'; set it to one of \['train'\]"
    ):
        load(tmp_path, train_split="training", eval_split="val")
    assert levels(load(tmp_path, eval_split="val").eval) == [2]
    assert len(load(tmp_path, train_split=None, eval_split=None).train) == 1


def test_directories_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.name must be .* got '.*missing', a path that does not exist"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"without any \.jpeg, \.jpg, \.png, \.webp files"):
        load(tmp_path)
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match=r"got '.*file.png', a file"):
        load(tmp_path / "file.png")
    with pytest.raises(UserError, match=r"none of the 1 image files below .* can be read"):
        load(tmp_path)


def test_a_single_image_cannot_be_divided(tmp_path):
    save(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match="must have at least 2 readable images"):
        load(tmp_path)


@pytest.mark.parametrize("eval_fraction", [0.0, 1.0, -0.1, 5.0])
def test_a_fraction_outside_of_0_and_1_is_refused(tmp_path, eval_fraction):
    save(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match=f"data.eval_fraction must be between 0 and 1, got {eval_fraction}"):
        load(tmp_path, eval_fraction=eval_fraction)


def labels(dataset):
    return [dataset.class_names[dataset[i]["label"]] for i in range(len(dataset))]


def test_folders_of_a_split_are_classes_with_one_number_in_both_splits(tmp_path):
    """As ImageNet is laid out; a class may be missing in a split, or lie deeper."""
    save(tmp_path / "train" / "n02" / "1.png", 2)
    save(tmp_path / "train" / "n01" / "1.png", 1)
    save(tmp_path / "train" / "n03" / "indoors" / "1.png", 3)
    save(tmp_path / "test" / "n03" / "1.png", 3)
    save(tmp_path / "test" / "n01" / "1.png", 1)
    splits = load(tmp_path)
    assert splits.train.class_names == splits.eval.class_names == ("n01", "n02", "n03")
    assert [splits.train[i]["label"].tolist() for i in range(3)] == [0, 1, 2]
    assert [splits.eval[i]["label"].tolist() for i in range(2)] == [0, 2]
    assert splits.train[0]["label"].dtype == np.int32


def test_folders_without_splits_are_classes_as_well(tmp_path):
    for level in range(12):
        save(tmp_path / f"class {level % 3}" / f"{level}.png", level)
    splits = load(tmp_path)
    for dataset in splits:
        assert labels(dataset) == [f"class {level % 3}" for level in levels(dataset)]


def test_images_beside_folders_leave_all_without_labels(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", 1)
    save(tmp_path / "train" / "2.png", 2)
    save(tmp_path / "test" / "a" / "1.png", 1)
    for dataset in load(tmp_path):
        assert dataset.class_names is None
        assert dataset[0].keys() == {"image"}


def test_a_class_of_any_name_can_be_reported(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        save(tmp_path / os.fsdecode(name) / "1.png", 1)
    assert load(tmp_path).train.class_names == ("caf?", "tea")
