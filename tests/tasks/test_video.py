"""Training of tokenizers of clips: a run, its pictures and numbers, and what it goes on from."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers.configs import load
from helpers.networks import save_resnet
from helpers.runs import tiny_config
from vqjax import UserError, load_tokenizer
from vqjax.data import augment, load_splits, to_model_range
from vqjax.data.clips import ClipPlan
from vqjax.data.video_arrays import VideoArray
from vqjax.evaluation import MSE, PSNR, evaluate
from vqjax.evaluation.clips import OfFrames, OverTime
from vqjax.models.tokenizer import NETWORK
from vqjax.training.build import build_task, initial_state
from vqjax.training.config import validate
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train
from vqjax.training.tokens import write_tokens

MODEL = {"channels": 32, "multipliers": (1,), "num_res_blocks": 1, "middle_attention": False, "latent_dim": 4}


@pytest.fixture(scope="module")
def videos_file(tmp_path_factory):
    """24 training and 6 held-out videos of a bar that moves by a pixel a frame."""
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 24), ("test", 6)):
        rows = random.integers(0, 256, (count, 1, 1, 16, 3), np.uint8).repeat(16, axis=2)
        splits[split] = np.concatenate([np.roll(rows, frame, axis=3) for frame in range(5)], axis=1)
    path = tmp_path_factory.mktemp("videos") / "videos.npz"
    np.savez(path, **splits)
    return path


def clip_config(videos_file):
    config = tiny_config(videos_file)
    config.num_steps, config.batch_size = 4, 4
    config.log_every = config.eval_every = config.checkpoint_every = 2
    config.data = {"source": "video_arrays", "name": str(videos_file), "image_size": 16, "frames": 5, "flip": True}
    config.model = {"name": "causal_video", "patch_size": 4, "time_scalings": 1} | MODEL
    return config


@pytest.fixture(scope="module")
def run(videos_file, tmp_path_factory):
    """The directory of a run, and its numbers."""
    workdir = tmp_path_factory.mktemp("clips") / "run"
    config = clip_config(videos_file)
    config.tensorboard = True
    return workdir, train(config, workdir, devices=jax.devices()[:1])


@pytest.mark.full
def test_a_run_measures_frames_and_their_differences(run):
    metrics = run[1].metrics
    assert metrics["clips"] == 6
    assert metrics["frames_per_clip"] == 5
    assert metrics["tokens_per_clip"] == 3 * 4 * 4
    assert metrics["bits_per_clip"] == 3 * 4 * 4 * 4  # bits of 16 codes
    assert {"psnr", "ssim", "psnr_gain_temporal_mean", "flicker_mse_01", "psnr_last_frame"} <= metrics.keys()


@pytest.mark.full
def test_pictures_move(run):
    with Image.open(run[0] / "eval" / "reconstructions_moving.png") as picture:
        assert picture.n_frames == 5
    events = b"".join(path.read_bytes() for path in (run[0] / "tensorboard").iterdir())
    assert b"GIF89a" in events


@pytest.mark.full
def test_a_run_that_was_cut_ends_as_one_that_was_not(run, videos_file, tmp_path):
    config = clip_config(videos_file)
    for config.num_steps in (2, 4):
        resumed = train(config, tmp_path / "cut", devices=jax.devices()[:1])
    assert resumed.metrics == run[1].metrics


@pytest.mark.full
def test_the_evaluation_has_filmstrips_and_a_distance_of_clips(run, tmp_path):
    network = save_resnet(tmp_path / "small.safetensors")
    result = evaluate_workdir(run[0], features=str(network))
    assert [name for name in result.metrics if name.startswith("rfvd")]
    assert result.metrics["psnr"] == pytest.approx(run[1].metrics["psnr"], rel=1e-6)
    # A frame for each of the three grids of tokens.
    assert result.collected["first/image"].shape[1:] == (16, 3 * 16, 3)
    assert result.collected["first/indices"].shape[1:] == (4, 3 * 4)
    assert (run[0] / "eval" / "report.html").exists()


@pytest.mark.full
def test_tokens_of_clips_are_those_of_the_tokenizer(run, videos_file, tmp_path):
    write_tokens(run[0], out=tmp_path / "tokens", flip=True)
    written = np.load(tmp_path / "tokens" / "train-00001.npy")["tokens"]
    clips = np.load(videos_file)["train"][:, :, :, ::-1]
    np.testing.assert_array_equal(written, load_tokenizer(run[0]).encode(clips))


@pytest.mark.full
def test_eight_devices_train_as_one(run, videos_file, tmp_path):
    config = clip_config(videos_file)
    config.batch_size = 8
    ended = [train(config, tmp_path / str(count), devices=jax.devices()[:count]).metrics for count in (1, 8)]
    for name in ("psnr", "flicker_mse_01", "quantization_error"):
        assert ended[1][name] == pytest.approx(ended[0][name], rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("model", ["causal_video", "timesformer"])
def test_a_discriminator_of_clips_trains_beside_it(videos_file, tmp_path, model):
    config = clip_config(videos_file)
    if model == "timesformer":
        config.model = {"name": "timesformer", "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "code_dim": 4}
    config.task = {"name": "vqgan", "discriminator": {"name": "patchgan3d", "channels": 4, "num_layers": 1}}
    config.task["perceptual"] = None
    result = train(config, tmp_path, devices=jax.devices()[:1])
    assert np.isfinite(result.metrics["psnr"])


@pytest.mark.full
def test_a_new_run_starts_from_an_image_tokenizer(images_file, videos_file, tmp_path):
    of_images = tiny_config(images_file)
    of_images.num_steps = of_images.eval_every = of_images.checkpoint_every = 1
    of_images.model = {"name": "vqgan"} | MODEL
    train(of_images, tmp_path / "images", devices=jax.devices()[:1])
    config = clip_config(videos_file)
    config.model = {"name": "causal_video", "time_scalings": 1} | MODEL
    config.task = {"name": "vqvae", "inflate": {"name": "run", "workdir": str(tmp_path / "images")}}
    splits = load_splits(validate(config).data)
    state = initial_state(build_task(validate(config), splits.train), splits.train, seed=0, batch_size=4)
    tokenizer = load_tokenizer(tmp_path / "images")
    images = to_model_range(splits.train[0]["video"][:1])
    variables = state.trained(NETWORK)
    expected = tokenizer.model.apply(tokenizer.variables, images, method="reconstruct")
    model = build_task(validate(config), splits.train).model
    found = model.apply(variables, images[None], method="reconstruct")
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("group", "choice", "message"),
    [
        ("data", {"frames": 4}, "fit clips of 4 frames .* 1 more than a multiple of 2 frames"),
        ("model", {"name": "sonnet", "width": 8}, "must have images for this model, got clips"),
        ("data", {"source": "photos"}, "must have clips for this model, got images"),
        ("task", {"name": "vqgan"}, "discriminator must be one of clips, .*, got PatchGAN; use 'patchgan3d'"),
    ],
)
def test_what_does_not_fit_is_named(videos_file, tmp_path, group, choice, message):
    config = clip_config(videos_file)
    before = {} if choice.keys() & {"name", "source"} else config[group].to_dict()
    setattr(config, group, before | choice)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path, devices=jax.devices()[:1])
    assert not list(tmp_path.iterdir())


CONFIGS = ("video", "video:tiny", "video:model=timesformer,discriminator", "video:folder=videos")
CONFIGS += ("timesformer", "timesformer:dataset=ucf101", "timesformer:dataset=panning,discriminator=False")


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_step_of_a_config_can_be_traced_at_full_size(name):
    config = validate(load(name))
    side, frames = config.data.image_size, config.data.frames
    clips = np.random.default_rng(0).integers(0, 256, (1, frames, side, side, 3), np.uint8)
    clips = VideoArray("noise", clips, side, ClipPlan(frames))
    task = build_task(config, clips)
    batch = {"video": jax.ShapeDtypeStruct((config.batch_size, frames, side, side, 3), jnp.uint8)}
    state = jax.eval_shape(task.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(task.train_step, state, batch, jax.random.key(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert {"loss", "psnr", "perplexity", "usage"} <= metrics.keys()


def test_all_frames_of_a_clip_are_augmented_alike():
    frame = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 12, 3), np.uint8)
    clips = jnp.asarray(frame.repeat(3, axis=1))
    options = {"flip": True, "crop_padding": 2}
    of_images = augment(jax.random.key(0), clips[:, 0], **options)
    expected = np.asarray(of_images)[:, None].repeat(3, axis=1)
    np.testing.assert_array_equal(augment(jax.random.key(0), clips, **options), expected)


def test_metrics_of_clips_agree_with_numpy():
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (3, 4, 12, 12, 3), np.uint8)
    made = np.clip(clips / 127.5 - 1 + 0.1 * random.normal(size=clips.shape), -1, 1).astype(np.float32)
    valid = np.array([True, True, False])
    metrics = [OfFrames(MSE()), OfFrames(PSNR()), OverTime()]
    result = evaluate(lambda batch: {"reconstruction": jnp.asarray(made)}, [{"video": clips, "valid": valid}], metrics)
    x, y = clips[:2] / 255.0, (made[:2].astype(np.float64) + 1) / 2
    errors = ((x - y) ** 2).mean(axis=(2, 3, 4))
    by_mean = ((x - x.mean(axis=1, keepdims=True)) ** 2).mean(axis=(2, 3, 4))
    psnr = -10 * np.log10(errors)
    differences = (np.diff(x, axis=1) - np.diff(y, axis=1)) ** 2
    expected = {
        "mse_01": errors.mean(),
        "psnr": psnr.mean(),
        "psnr_gain_temporal_mean": psnr.mean() + 10 * np.log10(by_mean).mean(),
        "flicker_mse_01": differences.mean(),
        "flicker_over_motion": differences.mean() / (np.diff(x, axis=1) ** 2).mean(),
        "psnr_first_frame": psnr[:, 0].mean(),
        "psnr_worst_frame": psnr.mean(axis=0).min(),
    }
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_a_frame_that_stands_still_has_no_motion():
    clips = jnp.zeros((2, 1, 12, 12, 3), jnp.uint8)
    outputs = {"reconstruction": jnp.zeros(clips.shape)}
    metrics = evaluate(lambda batch: outputs, [{"video": clips, "valid": np.ones(2, bool)}], [OverTime()]).metrics
    assert metrics["flicker_over_motion"] is None
    assert metrics["flicker_mse_01"] == 0
