"""Small videos are encoded here, each frame of the gray level that says its number."""

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vqjax.data import load_splits, materialize, video_folder, videos
from vqjax.data.dataset import UnreadableImage, is_random
from vqjax.data.feeds import StreamedFeed
from vqjax.data.video_folder import video_folder_splits
from vqjax.data.videos import frame_times, read_frames
from vqjax.errors import UserError

CODECS = {
    "mp4": "libx264",
    "mov": "mpeg4",
    "avi": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "flv": "flv",
    "wmv": "wmv2",
}


def picture(number, size=(64, 48)):
    return np.full((size[1], size[0], 3), 20 + 4 * number, np.uint8)


def numbers(frames):
    return ((np.asarray(frames)[..., frames[0].shape[0] // 2, frames[0].shape[1] // 2, 0] - 20.0) / 4).round().tolist()


def save(path, count=40, *, codec=None, rate=25, milliseconds=None, frame=picture, options=None, turned=0):
    """Encode a video with a key frame every twelve, and B-frames where the codec has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec or CODECS[path.suffix[1:]], rate=rate)
        first = frame(0)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 4_000_000
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for number in range(count):
            encoded = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            if milliseconds is not None:
                encoded.pts, encoded.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(encoded))
        container.mux(stream.encode())


def save_frames(directory, count, name="{}.png"):
    directory.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(picture(number)).save(directory / name.format(number))


def load(directory, **changes):
    options = {"image_size": 8, "frames": 4, "eval_fraction": 0.25} | changes
    return video_folder_splits(str(directory), **options)


def shown(dataset):
    return [numbers(dataset[i]["video"]) for i in range(len(dataset))]


def indices_from(start, count=4, stride=1):
    return list(range(start, start + count * stride, stride))


@pytest.mark.parametrize("suffix", CODECS)
def test_clips_have_the_frames_of_their_numbers(tmp_path, suffix):
    save(tmp_path / "train" / f"a.{suffix}")
    save(tmp_path / "test" / f"b.{suffix}", 9)
    splits = load(tmp_path)
    assert shown(splits.train) == [indices_from(start) for start in range(0, 40, 4)]
    assert shown(splits.eval) == [indices_from(0), indices_from(4)]
    assert splits.train.origin(2) == f"train/a.{suffix}, frames 8 to 11"
    video = materialize(splits.train)["video"]
    assert (video.shape, video.dtype) == ((10, 4, 8, 8, 3), np.uint8)
    strided = load(tmp_path, frames=3, frame_stride=3, clip_stride=10).train
    assert shown(strided) == [indices_from(start, 3, 3) for start in (0, 10, 20, 30)]


def test_frames_are_picked_by_their_times(tmp_path):
    save(tmp_path / "train" / "a.mp4", rate=30)
    # Slower from the twentieth on, at which times no two frames are equally near.
    save(tmp_path / "train" / "b.mkv", milliseconds=[20 * n if n < 20 else 30 * n - 200 for n in range(40)])
    save(tmp_path / "test" / "a.mp4", 20)
    splits = load(tmp_path, fps=10.0)
    assert shown(splits.train)[:3] == [indices_from(start, 4, 3) for start in (0, 12, 24)]
    assert shown(splits.train)[3:] == [[0, 5, 10, 15], [20, 23, 27, 30]]
    assert splits.train.origin(3) == "train/b.mkv, frames 0 to 3 at 10 a second"
    assert shown(load(tmp_path, fps=50.0).train)[16:19] == [indices_from(0), indices_from(4), indices_from(8)]


def test_decoding_begins_at_a_key_frame_in_the_middle(tmp_path, monkeypatch):
    save(tmp_path / "a.mp4")
    known, decoded = frame_times(tmp_path / "a.mp4"), []
    with_times = videos._with_times
    monkeypatch.setattr(
        videos, "_with_times", lambda *parts: (decoded.append(pair) or pair for pair in with_times(*parts))
    )
    frames = list(read_frames(tmp_path / "a.mp4", [known.spacing * number for number in (30, 31)], known))
    assert numbers([np.asarray(frame) for frame in frames]) == [30, 31]
    assert 24 <= round(decoded[0][0] / known.spacing) <= 30
    assert len(decoded) <= 9


TRUNCATED = "truncated|Invalid data|End of file|Input/output error"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.mp4", TRUNCATED),
        ("index first.mp4", TRUNCATED),
        ("cut.mkv", TRUNCATED),
        ("cut.webm", TRUNCATED),
        ("cut.avi", TRUNCATED),
        ("sound.mp4", "no video in it"),
        ("text.mp4", "Invalid data found"),
        ("empty.mp4", "empty file"),
        ("list.mp4", "Invalid data found"),
        ("one frame.mp4", "one frame, while a clip of 4 takes 4"),
        ("short.mp4", "3 frames, while a clip of 4 takes 4"),
        ("varied.mp4", "not equally spaced in time; set config.data.fps"),
        ("directory.mp4/", "no file"),
        ("short frames/", "2 frames, while a clip of 4 takes 4"),
        ("bad frames/", r"3.png: cannot identify image file"),
    ],
)
def test_videos_that_cannot_be_used_are_skipped_and_named(tmp_path, warnings_logged, name, reason, capfd):
    path = tmp_path / "train" / name
    save(tmp_path / "train" / "good.mp4", 8)
    save(tmp_path / "test" / "good.mp4", 4)
    whole = tmp_path / f"whole{path.suffix}"
    if name.startswith(("cut", "index")):
        noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
        options = {"movflags": "+faststart"} if "index" in name else {}
        save(whole, 60, frame=lambda number: noise[number], options=options)
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    elif name == "sound.mp4":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            container.mux([*stream.encode(frame), *stream.encode()])
    elif name == "list.mp4":
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/test/good.mp4\n#EXT-X-ENDLIST\n"
        )
    elif name in ("text.mp4", "empty.mp4"):
        path.write_text("not a video" if name == "text.mp4" else "")
    elif name in ("one frame.mp4", "short.mp4"):
        save(path, 1 if name == "one frame.mp4" else 3)
    elif name == "varied.mp4":
        save(path, 20, milliseconds=[40 * n + (19 if n % 2 else 0) for n in range(20)])
    elif name == "directory.mp4/":
        path.mkdir()
    else:
        save_frames(path, 2 if name == "short frames/" else 6)
        if name == "bad frames/":
            (path / "3.png").write_text("no image")
    splits = load(tmp_path)
    assert shown(splits.train) == [indices_from(0), indices_from(4)]
    if name == "directory.mp4/":
        assert warnings_logged == []
        return
    named, count = warnings_logged
    assert named.startswith(f"{tmp_path}/train: skipped unreadable video {path}: ")
    assert count == f"{tmp_path}/train: skipped 1 unreadable videos of 2"
    assert any(part in named for part in reason.split("|"))
    assert "\n" not in named
    assert capfd.readouterr() == ("", "")
    if name == "varied.mp4":
        assert len(load(tmp_path, fps=25.0).train) > 2


def test_a_video_that_is_damaged_later_is_replaced_while_training(tmp_path, warnings_logged):
    for name in "abcd":
        save(tmp_path / "train" / f"{name}.mp4", 8)
    save(tmp_path / "test" / "a.mp4", 4)
    train = load(tmp_path).train
    (tmp_path / "train" / "b.mp4").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"b\.mp4: empty file"):
        train[2]
    assert materialize(train)["video"].shape[0] == 6
    feed = feed_of(train)
    assert feed.select(feed.stage(0, 1), 0)["video"].shape == (8, 4, 8, 8, 3)
    feed.close()
    assert any("b.mp4: empty file" in line for line in warnings_logged)


def test_folders_of_videos_are_classes_and_those_of_frames_are_videos(tmp_path):
    save_frames(tmp_path / "train" / "running" / "clip_2", 12, "frame{}.png")
    save(tmp_path / "train" / "jumping" / "b.mp4", 4)
    # An image beside videos is none of their frames.
    Image.fromarray(picture(0)).save(tmp_path / "train" / "jumping" / "poster.jpg")
    save_frames(tmp_path / "test" / "running" / "clip_1", 5, "{:03}.png")
    splits = load(tmp_path)
    assert splits.train.class_names == splits.eval.class_names == ("jumping", "running")
    assert materialize(splits.train)["label"].tolist() == [0, 1, 1, 1]
    # Frame 10 comes behind frame 9.
    assert shown(splits.train) == [indices_from(start) for start in (0, 0, 4, 8)]
    assert shown(splits.eval) == [indices_from(0)]
    assert splits.train.origin(3) == "train/running/clip_2, frames 8 to 11"


def test_frames_directly_in_a_split_have_no_label(tmp_path):
    for number in range(4):
        save_frames(tmp_path / f"{number}", 4)
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.eval), splits.train.class_names) == (3, 1, None)
    with pytest.raises(UserError, match=r"none of the 4 video files below .* can be taken, the first because"):
        load(tmp_path, fps=10.0)


def feed_of(dataset, seed=0):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    return StreamedFeed(dataset, seed=seed, batch_size=min(8, len(dataset)), steps_per_dispatch=2, mesh=mesh)


def batches(dataset, first, count, seed=0):
    feed = feed_of(dataset, seed)
    staged = [feed.select(feed.stage(step, 1), 0)["video"] for step in range(first, first + count)]
    feed.close()
    return np.stack(staged)


def ramp(number):
    """The level says the place as well as the frame."""
    return np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3 + number, (48, 64, 3)).copy()


def test_random_starts_and_crops_are_those_of_the_step(tmp_path):
    save(tmp_path / "train" / "a.mkv", 40, codec="ffv1", frame=ramp)
    save_frames(tmp_path / "train" / "b", 20)
    save(tmp_path / "test" / "a.mp4", 4)
    splits = load(tmp_path, image_size=24, crop="cut", random_crop="window", random_start=True, clip_stride=12)
    assert is_random(splits.train)
    assert not is_random(splits.eval)
    whole = batches(splits.train, 0, 6)
    np.testing.assert_array_equal(batches(splits.train, 4, 2), whole[4:])
    assert not (batches(splits.train, 0, 6, seed=1) == whole).all()
    ramps = whole.reshape(-1, *whole.shape[2:])[..., 0].astype(int)
    ramps = ramps[ramps[:, 0, 0, -1] - ramps[:, 0, 0, 0] > 30]
    # One window for all frames: each is one level above the frame before.
    assert np.abs(np.diff(ramps, axis=1) - 1).max() <= 3
    assert len(np.unique(ramps[:, 0, 0, 0])) > 8


def test_a_phone_that_was_turned_gives_upright_frames(tmp_path):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write rotation")

    def corner(number):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:24, :32] = 255
        return frame

    for degrees, place in ((0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))):
        path = tmp_path / f"{degrees}.mp4"
        save(path, 2, frame=corner, turned=degrees)
        (frame,) = read_frames(path, [0.0], frame_times(path))
        pixels = np.asarray(frame)
        assert pixels.shape == ((48, 64, 3) if degrees in (0, 180) else (64, 48, 3))
        quarters = pixels.reshape(2, pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 3).mean((1, 3, 4))
        assert np.unravel_index(quarters.argmax(), (2, 2)) == place


def test_an_animation_lies_over_white(tmp_path):
    layers = [Image.new("RGBA", (16, 16), (255, 0, 0, 0)) for _ in range(4)]
    for number, layer in enumerate(layers):
        layer.paste((20 + 20 * number, 0, 0, 255), (0, 0, 8, 16))
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        path = tmp_path / split / "a.gif"
        layers[0].save(path, save_all=True, append_images=layers[1:], duration=100, disposal=2)
    video = load(tmp_path, image_size=16).train[0]["video"]
    assert video.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(video[:, 8, 2, 0], [20, 40, 60, 80], atol=6)
    assert (video[:, 8, 13] == 255).all()


def test_a_second_start_inspects_only_what_has_changed(tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / f"{name}.mp4", 8)
    save_frames(tmp_path / "d", 4)
    inspected = []
    monkeypatch.setattr(video_folder, "frame_times", lambda path: (inspected.append(path.name), frame_times(path))[1])
    first = load(tmp_path)
    assert sorted(inspected) == ["a.mp4", "b.mp4", "c.mp4"]
    inspected.clear()
    save(tmp_path / "c.mp4", 12)
    second = load(tmp_path)
    assert inspected == ["c.mp4"]
    count = [sum(len(part) for part in splits) for splits in (first, second)]
    assert count == [7, 8]


def test_held_out_copies_of_training_videos_are_reported(tmp_path, warnings_logged):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        save_frames(tmp_path / split / "frames", 4)
        save(tmp_path / split / "other.mp4", 8 if split == "train" else 9)
    load_splits(ConfigDict({"source": "video_folder", "name": str(tmp_path), "image_size": 8, "frames": 4}))
    assert "1 of its 3 images are exact duplicates" in warnings_logged[0]
    assert "test/frames, frames 0 to 3 is train/frames, frames 0 to 3" in warnings_logged[0]


def test_many_threads_decode_the_same_clips(tmp_path):
    save(tmp_path / "train" / "a.mp4")
    save(tmp_path / "test" / "a.mp4", 4)
    train = load(tmp_path).train
    expected = [train[i]["video"] for i in range(len(train))] * 4
    with ThreadPoolExecutor(8) as threads:
        np.testing.assert_array_equal(list(threads.map(lambda i: train[i % 10]["video"], range(40))), expected)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.mp4", 4)
    save_frames(tmp_path / "frames" / "a", 4)
    save_frames(tmp_path / "frames" / "b", 4)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'need PyAV, .*; pip install "vqjax\[video\]"') as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(load(tmp_path / "frames").train) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"must be a directory of videos, got .* without any \.3gp, \.avi, .* and directories of frames"),
        ({"fps": 0.0}, "config.data.fps must be above 0, got 0.0"),
        ({"frames": 0}, "config.data.frames must be at least 1, got 0"),
        ({"name": "missing"}, "must be a directory of videos, got '.*missing', a path that does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, options, message):
    name = options.pop("name", "")
    with pytest.raises(UserError, match=message):
        load(tmp_path / name, **options)


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_a_damaged_file_is_read_or_skipped(tmp_path, suffix, capfd):
    save(tmp_path / f"whole.{suffix}", 24)
    content, path, rng = (tmp_path / f"whole.{suffix}").read_bytes(), tmp_path / f"a.{suffix}", np.random.default_rng(0)
    read = 0
    for _ in range(40):
        spoiled = bytearray(content)
        for place in rng.integers(0, len(content), 8):
            spoiled[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        with contextlib.suppress(UnreadableImage):
            known = frame_times(path)
            wanted = [known.first + number * known.spacing for number in (3, 14)]
            assert [frame.mode for frame in read_frames(path, wanted, known)] == ["RGB", "RGB"]
            read += 1
    assert read > 0
    assert capfd.readouterr() == ("", "")
