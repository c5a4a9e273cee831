"""Token files: what goes in comes out, and a damaged file is named."""

import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.evaluation import load_tokens, save_tokens

CONTEXT = {"dataset": "cifar10", "split": "train", "checkpoint_step": 500}


@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_round_trip_in_the_narrowest_type(tmp_path, num_codes, dtype):
    indices = np.random.default_rng(0).integers(0, num_codes, [5, 2, 3])
    indices[0, 0, 0] = num_codes - 1
    save_tokens(tmp_path / "tokens.npz", indices, num_codes=num_codes, context=CONTEXT)
    with np.load(tmp_path / "tokens.npz", allow_pickle=False) as arrays:
        assert arrays["indices"].dtype == dtype
    tokens = load_tokens(tmp_path / "tokens.npz")
    np.testing.assert_array_equal(tokens.indices, indices)
    assert tokens.indices.dtype == np.int32
    assert (tokens.num_codes, tokens.context) == (num_codes, CONTEXT)


@pytest.mark.parametrize("wrong", [-1, 16])
def test_indices_out_of_range_are_not_written(tmp_path, wrong):
    with pytest.raises(UserError, match=r"indices must be in \[0, 15\] for num_codes=16"):
        save_tokens(tmp_path / "tokens.npz", np.full([1, 1, 1], wrong), num_codes=16, context={})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match=rf"path must be a file, got the directory .*; use {tmp_path}/tokens\.npz\.$"):
        save_tokens(tmp_path, np.zeros([1, 1, 1], int), num_codes=16, context={})


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save_tokens(tmp_path / "file" / "tokens.npz", np.zeros([1, 1, 1], int), num_codes=16, context={})


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "tokens.npz"
    save_tokens(path, np.arange(600).reshape(6, 10, 10), num_codes=1024, context=CONTEXT)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], b"", b"text", whole[:60] + bytes(40) + whole[100:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a valid token file"):
            load_tokens(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"tokens": np.zeros([1, 1, 1])},
        {"indices": np.array([None]), "num_codes": 4, "context": "{}"},
        {"indices": np.zeros([1, 1, 1], np.uint8), "num_codes": 4, "context": "not JSON"},
    ],
)
def test_other_archives_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "tokens.npz", allow_pickle=True, **arrays)
    with pytest.raises(UserError, match="is not a valid token file"):
        load_tokens(tmp_path / "tokens.npz")


def test_an_index_beyond_the_codebook_is_refused_on_reading(tmp_path):
    np.savez(tmp_path / "tokens.npz", indices=np.full([1, 1, 1], 9, np.uint8), num_codes=4, context="{}")
    with pytest.raises(UserError, match=r"must hold indices in \[0, 3\], got 9 to 9"):
        load_tokens(tmp_path / "tokens.npz")


def test_labels_and_origins_stay_with_their_rows(tmp_path):
    rows = {"labels": np.array([2, 0]), "class_names": ("a", "b", "c"), "origins": ("x/ä b.png", "x/new\nline.png")}
    save_tokens(tmp_path / "tokens.npz", np.array([[1, 2], [3, 4]]), num_codes=16, context=CONTEXT, **rows)
    tokens = load_tokens(tmp_path / "tokens.npz")
    assert (tokens.labels.tolist(), tokens.class_names, tokens.origins) == ([2, 0], *list(rows.values())[1:])
    with np.load(tmp_path / "tokens.npz", allow_pickle=False) as arrays:
        assert arrays["origins"].tolist() == list(rows["origins"])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("indices", "rows", "message"),
    [
        (np.array([[0.5, 1.0]]), {}, "indices must be integers .* got float64"),
        (np.array([1, 2]), {}, r"got int64 of shape \[2\]"),
        (np.array([[True]]), {}, "got bool"),
        (np.array([[1]]), {"labels": np.array([1, 2])}, "labels must be one for each of the 1 images, got 2"),
        (np.array([[1]]), {"origins": []}, "origins must be one for each of the 1 images, got 0"),
    ],
)
def test_rows_that_cannot_be_tokens_are_not_written(tmp_path, indices, rows, message):
    """Bug: indices of a float type were cut to whole numbers."""
    with pytest.raises(UserError, match=message):
        save_tokens(tmp_path / "tokens.npz", indices, num_codes=16, context={}, **rows)
    assert list(tmp_path.iterdir()) == []
