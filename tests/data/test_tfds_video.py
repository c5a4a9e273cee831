"""As in test_tfds.py, real array_record datasets are written here; frames say the video and their number in it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from helpers.tfds import png, write_dataset
from vqjax.data import materialize
from vqjax.data.dataset import is_random
from vqjax.data.tfds_video import tfds_video_splits
from vqjax.errors import UserError


def frames(video, count):
    return [png(20 * video + number) for number in range(count)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    path = tmp_path_factory.mktemp("tfds")
    classes = {"label": tfds.features.ClassLabel(names=["even", "odd"])}
    videos = [{"video": frames(video, 5 + video), "label": video % 2} for video in range(8)]
    features = {"video": tfds.features.Sequence(tfds.features.Image(shape=(8, 12, 3)))} | classes
    write_dataset(path, "actions", features, {"train": videos, "test": videos[:2]})
    # What tfds calls a video is stored as a sequence is, but cannot be written without TensorFlow.
    description = path / "actions" / "1.0.0" / "features.json"
    content = json.loads(description.read_text())
    shape = {"dimensions": ["-1", "8", "12", "3"]}
    content["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"},
    }
    description.write_text(json.dumps(content))
    steps = tfds.features.Sequence({"image_main": tfds.features.Image(shape=(8, 12, 3)), "action": np.float32})
    robots = [{"image_main": frames(video, 6), "action": np.zeros(6, np.float32)} for video in range(4)]
    write_dataset(path, "robots", steps, {"train": robots, "test": robots})
    return path


@pytest.fixture(autouse=True)
def use_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


def levels(dataset):
    return [dataset[i]["video"][:, 0, 0, 0].tolist() for i in range(len(dataset))]


def test_clips_of_videos_of_any_length_are_found_with_their_labels(warnings_logged):
    splits = tfds_video_splits("actions", 8, frames=3, frame_stride=2, clip_stride=3)
    expected = [
        [20 * video + start + 2 * k for k in range(3)] for video in range(8) for start in range(0, 1 + video, 3)
    ]
    assert sorted(levels(splits.train)) == sorted(expected)
    examples = materialize(splits.train)
    assert examples["video"].shape == (len(expected), 3, 8, 8, 3)
    np.testing.assert_array_equal(examples["label"], examples["video"][:, 0, 0, 0, 0] // 20 % 2)
    assert splits.train.class_names == ("even", "odd")
    assert splits.eval.origin(0) == "actions/test[0], frames 0 to 4"
    assert warnings_logged == []


def test_videos_that_are_steps_of_a_robot_are_read():
    train = tfds_video_splits("robots", 8, feature="image_main", frames=6).train
    assert sorted(levels(train)) == [[20 * video + k for k in range(6)] for video in range(4)]
    assert train.class_names is None


def test_random_starts_stay_inside_and_too_short_videos_are_counted(warnings_logged):
    splits = tfds_video_splits("actions", 8, frames=6, random_start=True, random_crop="window")
    assert warnings_logged == [
        "actions/train: skipped 1 short videos of 8",
        "actions/test: skipped 1 short videos of 2",
    ]
    assert (is_random(splits.train), is_random(splits.eval)) == (True, False)
    for seed in range(20):
        video = splits.train.draw(seed % len(splits.train), np.random.default_rng(seed))["video"]
        assert (np.diff(video[:, 0, 0, 0]) == 1).all()


def test_frames_are_counted_once(monkeypatch):
    first = tfds_video_splits("actions", 8, frames=3)
    monkeypatch.setattr("vqjax.data.tfds_video.TfdsVideos._counted", None)
    assert levels(tfds_video_splits("actions", 8, frames=3).train) == levels(first.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feature": "image"},
            r"data.feature must be a video of 8 bits in 'actions', got 'image'; .* \(label, video\)",
        ),
        ({"feature": "label"}, "data.feature must be a video of 8 bits in 'actions', got 'label'"),
        ({"train_split": "trian"}, "split 'trian' of tfds actions cannot be read"),
        ({"frames": 17}, "actions/train: its videos have .* frames, while a clip of 17 takes 17; set"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        tfds_video_splits("actions", 8, **options)
    assert "\n" not in str(error.value)


@pytest.mark.full
def test_reading_neither_imports_tensorflow_nor_prints_anything():
    command = (
        "import sys; from vqjax.data.tfds_video import tfds_video_splits; from vqjax.data import materialize; "
        "materialize(tfds_video_splits('actions', 8, frames=3).train); sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
