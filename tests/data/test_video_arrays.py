import numpy as np
import pytest

from vqjax.data import materialize
from vqjax.data.dataset import is_random
from vqjax.data.duplicates import report_duplicates
from vqjax.data.feeds import StreamedFeed
from vqjax.data.video_arrays import video_array_splits
from vqjax.errors import UserError


def numbered(videos, frames, shape=(8, 8, 3)):
    """Frame t of video v is all 40 v + t."""
    levels = 40 * np.arange(videos)[:, None] + np.arange(frames)
    return np.broadcast_to(levels.reshape(videos, frames, *[1] * len(shape)), (videos, frames, *shape)).astype(np.uint8)


def levels(dataset):
    return [dataset[i]["video"][:, 0, 0, 0].tolist() for i in range(len(dataset))]


def test_npy_is_read_as_needed_and_divided_by_video(tmp_path):
    np.save(tmp_path / "videos.npy", numbered(5, 20))
    splits = video_array_splits(tmp_path / "videos.npy", 8, frames=4, frame_stride=2, eval_fraction=0.2)
    assert isinstance(splits.train._videos, np.memmap)
    assert (len(splits.train), len(splits.eval)) == (8, 2)
    assert (splits.train.name, splits.eval.name) == ("videos.npy/train", "videos.npy/eval")
    found = levels(splits.train) + levels(splits.eval)
    assert sorted(found) == [[40 * v + s + 2 * k for k in range(4)] for v in range(5) for s in (0, 7)]
    assert {clip[0] // 40 for clip in levels(splits.train)}.isdisjoint({clip[0] // 40 for clip in levels(splits.eval)})
    row = levels(splits.train)[1][0] // 40
    assert splits.train.origin(1) == f"videos[{row}], frames 7 to 13"


def test_npz_has_splits_and_the_labels_of_their_videos(tmp_path):
    labels = {"train_labels": np.array([2, 0]), "test_labels": np.array([1])}
    np.savez(tmp_path / "videos.npz", train=numbered(2, 9, (8, 8)), test=numbered(1, 9, (8, 8)), **labels)
    splits = video_array_splits(tmp_path / "videos.npz", (4, 6), channels=1, frames=3)
    examples = materialize(splits.train)
    assert examples["video"].shape == (6, 3, 4, 6, 1)
    assert examples["label"].tolist() == [2, 2, 2, 0, 0, 0]
    assert splits.eval.class_names == ("0", "1", "2")


def test_random_starts_are_the_same_from_any_step(tmp_path):
    import jax

    np.save(tmp_path / "videos.npy", numbered(5, 30))
    splits = video_array_splits(tmp_path / "videos.npy", 4, frames=3, clip_stride=14, random_start=True)
    assert is_random(splits.train)
    assert not is_random(splits.eval)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])

    def batches(first, count):
        feed = StreamedFeed(splits.train, seed=3, batch_size=4, steps_per_dispatch=2, mesh=mesh)
        staged = [feed.select(feed.stage(step, 1), 0)["video"] for step in range(first, first + count)]
        feed.close()
        return np.stack(staged)

    whole = batches(0, 12)
    np.testing.assert_array_equal(batches(7, 5), whole[7:])
    starts = whole[..., 0, 0, 0] % 40
    assert (np.diff(starts) == 1).all()
    assert len(np.unique(starts[..., 0])) > 10


def test_held_out_copies_of_training_clips_are_reported(tmp_path, warnings_logged):
    videos = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "videos.npz", train=videos, test=videos[1:2])
    splits = video_array_splits(tmp_path / "videos.npz", 8, frames=3)
    assert report_duplicates(splits) == 2
    assert "test[0], frames 0 to 2 is train[1], frames 0 to 2" in warnings_logged[0]


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (np.zeros((4, 9, 8, 8, 3), np.float32), r"\(255 \* videos\)"),
        (np.zeros((4, 9, 3, 8, 8), np.uint8), r"numpy.moveaxis\(videos, 2, -1\)"),
        (np.zeros((9, 8, 8), np.uint8), r"array 'videos' must be uint8 of shape \[videos, frames, height, width, 3\]"),
        (np.zeros((4, 2, 8, 8), np.uint8), r"its videos have 2 frames, while a clip of 3 takes 3; set .*data.frames"),
    ],
)
def test_arrays_that_are_not_videos_are_refused(tmp_path, videos, message):
    np.save(tmp_path / "videos.npy", videos)
    with pytest.raises(UserError, match=message) as error:
        video_array_splits(tmp_path / "videos.npy", 8, frames=3)
    assert "\n" not in str(error.value)
