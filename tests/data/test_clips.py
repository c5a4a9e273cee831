import numpy as np
import pytest
from PIL import Image

from vqjax.data import materialize
from vqjax.data.clips import ClipPlan
from vqjax.data.panning import _candidates, _render, panning_photo_splits
from vqjax.data.shapes import MovingShapes, moving_shape_splits
from vqjax.data.statistics import fingerprint, pixel_variance
from vqjax.errors import UserError
from vqjax.training.config import base_config, validate


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("frame_stride", [1, 4])
@pytest.mark.parametrize("clip_stride", [None, 1, 7])
def test_clips_are_all_that_fit_at_their_stride(frames, frame_stride, clip_stride):
    plan = ClipPlan(frames, frame_stride, clip_stride)
    span = frame_stride * (frames - 1) + 1
    lengths = [30, span - 1, span, 0]
    expected = [
        [video, start]
        for video, length in enumerate(lengths)
        for start in range(0, length, clip_stride or span)
        if start + span <= length
    ]
    assert plan.clips(lengths).tolist() == expected
    assert len(plan.numbers(5)) == frames
    assert plan.numbers(5)[-1] == 5 + span - 1


def test_random_starts_cover_the_video_and_stay_inside():
    plan = ClipPlan(3, 2, random_start=True)
    rng = np.random.default_rng(0)
    assert {plan.start(0, 8, rng) for _ in range(100)} == {0, 1, 2, 3}
    assert plan.start(2, 8) == 2
    assert ClipPlan(3, 2).start(2, 8, rng) == 2


@pytest.mark.parametrize("field", ["frames", "frame_stride", "clip_stride"])
def test_numbers_below_1_are_refused(field):
    with pytest.raises(UserError, match=f"config.data.{field} must be at least 1, got 0"):
        ClipPlan(**{field: 0})


def test_configs_choose_clips():
    config = base_config()
    config.num_steps = 1
    config.data = {"source": "panning_photos", "frames": 5}
    assert validate(config).data.frame_stride == 1
    config.data.frames = 0
    with pytest.raises(UserError, match=r"config.data.frames must be at least 1, got 0"):
        validate(config)


@pytest.fixture(scope="module")
def panning():
    return panning_photo_splits(image_size=32)


def test_panning_has_its_number_of_clips_of_different_photographs(panning):
    assert (len(panning.train), len(panning.eval)) == (1024, 128)
    assert panning.train[0]["video"].shape == (17, 32, 32, 3)
    assert panning.train[0]["video"].dtype == np.uint8
    photographs = [{data.origin(i).partition("[")[0] for i in range(len(data))} for data in panning]
    assert (len(photographs[0]), photographs[1]) == (7, {"chelsea.png", "coffee.png"})
    assert not photographs[0] & photographs[1]
    assert len({panning.train.origin(i).partition("[")[0] for i in range(12)}) == 7


def test_panning_is_the_same_in_every_run(panning):
    again = panning_photo_splits(image_size=32)
    for index in (0, 500, 1023):
        np.testing.assert_array_equal(again.train[index]["video"], panning.train[index]["video"])


def test_windows_stay_inside_and_move_evenly(panning):
    times = np.arange(17)
    for index in range(0, 128, 3):
        motion = panning.eval._motions[index]
        photo = panning.eval._photos[panning.eval.origin(index).partition("[")[0]]
        corners = 16 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        cos, sin = np.cos(motion.angles), np.sin(motion.angles)
        turns = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1) * motion.scales[:, None, None]
        places = motion.centers[:, None] + corners @ turns.transpose(0, 2, 1)
        assert (places >= 0).all()
        assert (places <= photo.size).all()
        steps = np.diff(motion.centers, axis=0)
        np.testing.assert_allclose(steps, steps[:1].repeat(16, axis=0), atol=1e-9)
        assert 2 <= np.hypot(*steps[0]) / np.sqrt(motion.scales[0] * motion.scales[-1]) <= 6
        for part, most in ((motion.angles, np.radians(2)), (np.log(motion.scales), np.log1p(0.0205))):
            np.testing.assert_allclose(part, np.polyval(np.polyfit(times, part, 1), times), atol=1e-9)
            assert abs(part[1] - part[0]) <= most
        assert motion.scales.min() >= 1 - 1e-9


def test_windows_of_long_clips_have_the_pixels_of_the_clip():
    """Bug: those that grow or shrink by more than four times in all were smaller at their smallest."""
    photo, plan = Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)), ClipPlan(frames=161)
    motions = _candidates(photo, (4, 4), plan, np.random.default_rng(0))
    assert len(motions.scales) > 10
    assert motions.scales.min() >= 1 - 1e-9


def test_pixels_show_the_places_of_the_motion(panning):
    """On a picture of the coordinates, each frame shows those that follow from the motion."""
    y, x = np.mgrid[:300, :451] + 0.5
    picture = Image.fromarray(np.stack([x / 2, y / 2, 0 * x], -1).round().astype(np.uint8))
    grid = np.stack(np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5), -1)
    rows = [i for i in range(40) if panning.eval.origin(i).startswith("chelsea")]
    for index in rows:
        motion = panning.eval._motions[index]
        video = _render(picture, motion, (32, 32))
        for frame in (0, 8, 16):
            cos, sin = np.cos(motion.angles[frame]), np.sin(motion.angles[frame])
            turn = motion.scales[frame] * np.array([[cos, -sin], [sin, cos]])
            expected = motion.centers[frame] + grid @ turn.T
            np.testing.assert_allclose(video[frame, ..., :2], expected / 2, atol=2)


def test_hardly_any_panning_clip_is_constant(panning):
    contrast = materialize(panning.eval)["video"].mean(-1).std((2, 3))
    assert (contrast < 3).mean() < 0.01


def test_panning_of_other_shapes_and_what_does_not_fit():
    splits = panning_photo_splits((24, 40), frames=5, frame_stride=3, channels=1)
    assert splits.train[3]["video"].shape == (5, 24, 40, 1)
    with pytest.raises(UserError, match=r"config.data.image_size must leave room .* got 300 with frames=17"):
        panning_photo_splits(300)


def test_shapes_are_the_same_in_every_run_and_differ_between_the_splits():
    first, second = moving_shape_splits(16, 5), moving_shape_splits(16, 5)
    assert (len(first.train), len(first.eval)) == (1024, 128)
    np.testing.assert_array_equal(first.train[7]["video"], second.train[7]["video"])
    clips = {data[i]["video"].tobytes() for data in first for i in range(128)}
    assert len(clips) == 256
    labels = [int(first.eval[i]["label"]) for i in range(128)]
    assert np.bincount(labels, minlength=3).min() > 20


def test_a_shape_moves_evenly_between_the_edges_and_keeps_its_area(monkeypatch):
    monkeypatch.setattr("vqjax.data.shapes._MOST_SHAPES", 1)
    monkeypatch.setattr(MovingShapes, "_background", lambda self, generator: np.zeros((60, 48, 48, 3), np.float32))
    shapes = MovingShapes("shapes", range(30), 48, ClipPlan(frames=60))
    y, x = np.mgrid[:48, :48] + 0.5
    for index in range(30):
        cover = shapes[index]["video"].max(-1) / 255
        areas = cover.sum((1, 2))
        np.testing.assert_allclose(areas, areas[0], rtol=0.06)
        assert 0.015 < areas[0] / 48**2 < 0.16
        centers = np.stack([(cover * y).sum((1, 2)), (cover * x).sum((1, 2))], 1) / areas[:, None]
        steps = np.abs(np.diff(centers, axis=0))
        speed = np.median(steps, axis=0)
        # The same way in each frame, but for those in which it bounces.
        assert (np.abs(steps - speed) < 0.15).mean() > 0.85
        assert 0.01 * 48 < np.hypot(*speed) < 0.065 * 48


@pytest.mark.parametrize("channels", [1, 4])
def test_shapes_need_not_be_square_or_in_color(channels):
    video = moving_shape_splits((16, 24), 5, frame_stride=2, channels=channels).train[0]["video"]
    assert video.shape == (5, 16, 24, channels)
    assert channels == 1 or (video[..., 3] == 255).all()
    with pytest.raises(UserError, match=r"config.data.image_size must be at least 8 for moving shapes, got 4"):
        moving_shape_splits(4)


def test_statistics_are_over_the_pixels_of_all_frames():
    shapes = MovingShapes("shapes", range(30), 16, ClipPlan(frames=5))
    pixels = materialize(shapes)["video"] / 127.5 - 1
    assert pixel_variance(shapes) == pytest.approx(pixels.var(), rel=1e-6)
    assert fingerprint(shapes).startswith("30 images, checksum ")
    assert fingerprint(shapes) != fingerprint(MovingShapes("shapes", range(1, 31), 16, ClipPlan(frames=5)))


@pytest.mark.usefixtures("as_users_run_it")
def test_videos_of_a_source_of_ones_own_are_checked():
    class Wrong(MovingShapes):
        def __getitem__(self, index):
            return {"video": super().__getitem__(index)["video"][0]}

    with pytest.raises(
        UserError, match=r"`video` must be uint8 of shape \[frames, height, width, channels\], got uint8"
    ):
        materialize(Wrong("shapes", range(3), 16, ClipPlan(5)))
