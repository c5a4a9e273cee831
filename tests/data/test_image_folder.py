import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vqjax.data import Splits, folder_index, load_splits, materialize
from vqjax.data.duplicates import report_duplicates
from vqjax.data.image_folder import image_folder_splits
from vqjax.data.images import check_header
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
    with pytest.raises(UserError, match=r"none of the 1 image files below .* can be taken, the first because"):
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


JUNK = (".ipynb_checkpoints/1-checkpoint.png", ".Trash-1000/files/1.png", "__MACOSX/._1.png", "._1.png", ".1.png")


def test_hidden_files_and_those_of_systems_are_left_out_and_named(tmp_path, warnings_logged):
    """Bug: ten images, found twenty: copies in .ipynb_checkpoints and the like were data."""
    for level in range(10):
        save(tmp_path / "class" / f"{level}.png", level)
        for name in JUNK:
            save(tmp_path / "class" / name.replace("1", str(level)), level)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "class" / name).touch()
    splits = load(tmp_path)
    assert sorted(levels(splits.train) + levels(splits.eval)) == list(range(10))
    assert splits.train.class_names == ("class",)
    (line,) = warnings_logged
    assert "ignored 35 hidden or system files and directories (class/.0.png, " in line


def test_a_directory_may_itself_be_hidden(tmp_path):
    for level in range(4):
        save(tmp_path / ".cache" / "images" / f"{level}.png", level)
    assert len(load(tmp_path / ".cache" / "images").train) == 3


def test_other_files_are_counted_by_suffix(tmp_path, warnings_logged):
    for level in range(4):
        save(tmp_path / f"{level}.png", level)
    for name in ("a.heic", "b.HEIC", "list.txt", "README"):
        (tmp_path / name).touch()
    load(tmp_path)
    assert warnings_logged == [f"{tmp_path}: ignored 2 .heic, 1 .txt, 1 without a suffix"]


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "TIFF", "ppm", "jfif", "jp2"])
def test_formats_that_were_left_out_are_read(tmp_path, suffix, warnings_logged):
    for level in (10, 250):
        save(tmp_path / f"{level}.{suffix}", level)
    splits = load(tmp_path)
    assert sorted(levels(splits.train) + levels(splits.eval)) == pytest.approx([10, 250], abs=3)
    assert warnings_logged == []


def test_duplicates_of_training_images_among_the_held_out_ones_are_reported(tmp_path, warnings_logged):
    for level in range(12):
        save(tmp_path / "train" / f"{level}.png", level)
        save(tmp_path / "test" / f"{level}.png", level if level < 8 else 100 + level)
    data = {"source": "image_folder", "name": str(tmp_path), "image_size": 4, "train_split": "train"}
    splits = load_splits(ConfigDict(data | {"eval_split": "test", "eval_fraction": 0.5}))
    assert (len(splits.train), len(splits.eval)) == (12, 12)
    (line,) = warnings_logged
    assert f"{tmp_path.name}/test: 8 of its 12 images are exact duplicates of training images" in line
    assert "(test/0.png is train/0.png, test/1.png is train/1.png, " in line
    assert line.count(" is ") == 5


def test_files_of_one_size_beginning_and_end_are_no_duplicates_unless_they_are_equal(tmp_path, warnings_logged):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (100, 100, 3), np.uint8)
    for split in ("train", "test"):
        for number in range(2):
            path = tmp_path / split / f"{number}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
        pixels = pixels.copy()
        pixels[50] = 0
    splits = load(tmp_path)
    assert set(splits.train.digests()) == set(splits.eval.digests())
    assert report_duplicates(splits) == 0
    assert report_duplicates(Splits(splits.train, splits.train)) == 2
    assert "2 of its 2 images are exact duplicates" in warnings_logged[-1]


def test_images_need_not_be_square_and_may_have_1_or_4_channels(tmp_path):
    for level in range(4):
        save(tmp_path / f"{level}.png", 100 + level)
    for channels in (1, 3, 4):
        images = materialize(load(tmp_path, image_size=(4, 6), channels=channels).train)["image"]
        assert images.shape == (3, 4, 6, channels)
        assert (images[..., 3:] == 255).all()
    with pytest.raises(UserError, match=r"config.data.channels must be 1 \(gray\), 3 \(RGB\) or 4 .* got 2"):
        load(tmp_path, channels=2)


@pytest.fixture
def headers_read(monkeypatch):
    read = []
    monkeypatch.setattr(folder_index, "check_header", lambda path: (read.append(path.name), check_header(path)))
    return read


def test_a_second_start_reads_no_headers_but_of_what_has_changed(tmp_path, headers_read):
    for level in range(10):
        save(tmp_path / f"{level}.png", level)
    (tmp_path / "broken.png").write_bytes(b"no image")
    first = load(tmp_path)
    assert len(headers_read) == 11
    headers_read.clear()
    second = load(tmp_path)
    # What could not be read may have been away for a moment.
    assert headers_read == ["broken.png"]
    headers_read.clear()
    assert levels(second.train) == levels(first.train)
    np.testing.assert_array_equal(second.train.digests(), first.train.digests())
    before = os.stat(tmp_path / "3.png")
    save(tmp_path / "3.png", 4)
    # Of the same size and, as some copies, of the same time: only the time of the status tells.
    assert os.stat(tmp_path / "3.png").st_size == before.st_size
    os.utime(tmp_path / "3.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    save(tmp_path / "new.png", 11)
    os.remove(tmp_path / "5.png")
    save(tmp_path / "broken.png", 12)
    splits = load(tmp_path)
    assert sorted(headers_read) == ["3.png", "broken.png", "new.png"]
    assert sorted(levels(splits.train) + levels(splits.eval)) == [0, 1, 2, 4, 4, 6, 7, 8, 9, 11, 12]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "text", "directory", "of another", "pickle"])
def test_a_damaged_index_counts_as_none(tmp_path, headers_read, damage, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for level in range(4):
        save(tmp_path / "images" / f"{level}.png", level)
    expected = levels(load(tmp_path / "images").train)
    (index,) = (tmp_path / "cache").rglob("*.npz")
    content = index.read_bytes()
    middle = content.index(b"0.png")
    if damage == "cut":
        index.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        index.write_bytes(content[:middle] + b"9" + content[middle + 1 :])
    elif damage == "emptied":
        index.write_bytes(b"")
    elif damage == "text":
        index.write_bytes(b"not an archive")
    elif damage == "directory":
        index.unlink()
        index.mkdir()
    elif damage == "of another":
        load(tmp_path)
        other = next(path for path in (tmp_path / "cache").rglob("*.npz") if path != index)
        index.write_bytes(other.read_bytes())
    else:
        arrays = dict(np.load(index))
        np.savez(index, **arrays | {"names": np.array([{}], object)}, allow_pickle=True)
    headers_read.clear()
    assert levels(load(tmp_path / "images").train) == expected
    assert {name for name in headers_read if "/" not in name} >= {f"{level}.png" for level in range(4)}


def test_without_a_cache_that_can_be_written_everything_is_read(tmp_path, headers_read, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for level in range(4):
        save(tmp_path / "images" / f"{level}.png", level)
    for _ in range(2):
        load(tmp_path / "images")
    assert len(headers_read) == 8


def test_starts_at_the_same_time_leave_a_whole_index(tmp_path, headers_read):
    for level in range(50):
        save(tmp_path / f"{level}.png", level)
    with ThreadPoolExecutor(8) as threads:
        results = [levels(splits.train) for splits in threads.map(lambda _: load(tmp_path), range(8))]
    assert all(result == results[0] for result in results)
    headers_read.clear()
    assert levels(load(tmp_path).train) == results[0]
    assert headers_read == []


def test_a_class_of_any_name_can_be_reported(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        save(tmp_path / os.fsdecode(name) / "1.png", 1)
    assert load(tmp_path).train.class_names == ("caf?", "tea")
