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
    return [int(dataset[i][0, 0, 0]) for i in range(len(dataset))]


def test_split_directories_are_used_and_searched_below_in_sorted_order(tmp_path):
    save(tmp_path / "train" / "b" / "1.png", 30)
    save(tmp_path / "train" / "a" / "2.png", 20)
    save(tmp_path / "train" / "a" / "1.png", 10)
    save(tmp_path / "test" / "1.png", 40)
    splits = load(tmp_path)
    assert levels(splits.train) == [10, 20, 30]
    assert levels(splits.heldout) == [40]
    assert (splits.train.name, splits.heldout.name) == (f"{tmp_path.name}/train", f"{tmp_path.name}/test")
    assert materialize(splits.train).shape == (3, 4, 4, 3)


def test_otherwise_a_fraction_is_held_out_and_the_splits_are_disjoint_and_repeatable(tmp_path):
    for level in range(20):
        save(tmp_path / f"{level:02}.png", level)
    first, second = load(tmp_path), load(tmp_path)
    assert len(first.heldout) == 5
    assert sorted(levels(first.train) + levels(first.heldout)) == list(range(20))
    assert levels(first.heldout) == levels(second.heldout)


def test_all_suffixes_in_any_case_are_images_and_other_files_are_not(tmp_path):
    for name in ("a.jpg", "b.JPEG", "c.PNG", "d.webp", "e.WebP"):
        save(tmp_path / name, 100)
    (tmp_path / "notes.txt").write_text("no image")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.heldout) == 5


def test_files_without_an_image_header_are_skipped_named_and_counted(tmp_path, warnings_logged):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.heldout) == 2
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
    assert materialize(splits.train)[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert "1.png" in warnings_logged[0]


def test_links_that_form_a_loop_are_followed_once(tmp_path):
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "a" / "2.png", 2)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "broken.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.heldout) == 2


def test_linked_directories_are_searched(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", 1)
    save(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(load(tmp_path / "data").train) == 1


def test_one_of_two_split_directories_is_refused_rather_than_mixed_into_training(tmp_path):
    save(tmp_path / "train" / "1.png", 1)
    save(tmp_path / "val" / "1.png", 2)
    with pytest.raises(UserError, match=r"has train/ but no test/; set config.data.eval_split to one of \['val'\]"):
        load(tmp_path)
    with pytest.raises(
        UserError, match=r"has val/ but no training/; set config.data.train_split to one of \['train'\]"
    ):
        load(tmp_path, train_split="training", eval_split="val")
    assert levels(load(tmp_path, eval_split="val").heldout) == [2]
    assert len(load(tmp_path, train_split="", eval_split="").train) == 1


def test_directories_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.name='.*missing' does not exist"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no \.jpeg, \.jpg, \.png, \.webp files"):
        load(tmp_path)
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match=r"is a file, not a directory"):
        load(tmp_path / "file.png")
    with pytest.raises(UserError, match=r"none of the 1 image files below .* can be read"):
        load(tmp_path)


def test_a_single_image_cannot_be_divided(tmp_path):
    save(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match="has 1 readable image"):
        load(tmp_path)


@pytest.mark.parametrize("eval_fraction", [0.0, 1.0, -0.1, 5.0])
def test_a_fraction_outside_of_0_and_1_is_refused(tmp_path, eval_fraction):
    save(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match=f"data.eval_fraction={eval_fraction} must lie between 0 and 1"):
        load(tmp_path, eval_fraction=eval_fraction)
