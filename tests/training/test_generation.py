"""From a tokenizer to samples: tokens of a data set, a model of them, and its images."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers.configs import load
from vqjax.checkpointing.checkpoints import load_networks, load_tokenizer
from vqjax.data.tokens import INDEX_FILE, TokenDataset, token_splits, write_shard
from vqjax.data.whole_images import whole_images
from vqjax.errors import UserError
from vqjax.functional.tokens import TokenInfo
from vqjax.training import sample
from vqjax.training.build import build_task, check_fits, example_batch
from vqjax.training.cli import _call
from vqjax.training.config import base_config, complete
from vqjax.training.devices import make_mesh
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train
from vqjax.training.sample import sample_images
from vqjax.training.tokens import write_tokens

CLASSES = 3


@pytest.fixture(scope="module")
def labelled(images_file, tmp_path_factory):
    """The images of the runs, with classes."""
    images, labels = dict(np.load(images_file)), {}
    for split, pixels in images.items():
        labels[f"{split}_labels"] = np.arange(len(pixels), dtype=np.int32) % CLASSES
    path = tmp_path_factory.mktemp("labelled") / "labelled.npz"
    np.savez(path, **images, **labels)
    return path


@pytest.fixture(scope="module")
def tokens(finished, labelled, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens") / "written"
    write(finished, labelled, directory)
    return directory


def write(run, images, directory, **options):
    options = {"flip": True, "crops": 2, "shard_size": 20} | options
    write_tokens(run, f"--config.data.name={images}", out=directory, **options)


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def model_config(tokens, tokenizer=None, *, masked=False, num_steps=4):
    config = base_config()
    config.num_steps, config.batch_size, config.tensorboard = num_steps, 8, False
    config.log_every = config.eval_every = config.checkpoint_every = 2
    config.data = {"source": "tokens", "name": str(tokens)}
    name = "masked_transformer" if masked else "causal_transformer"
    config.model = {"name": name, "dim": 16, "depth": 1, "heads": 2}
    config.quantizer, config.loss = {}, None
    config.task = {"name": "masked_tokens" if masked else "autoregressive"}
    if tokenizer is not None:
        config.task.tokenizer = {"workdir": str(tokenizer)}
    config.optimizer = {"name": "adamw", "learning_rate": 1e-2}
    return config


@pytest.fixture(scope="module")
def models(finished, tokens, tmp_path_factory):
    """Directories of a causal and of a masked model."""
    place = tmp_path_factory.mktemp("models")
    for masked in (False, True):
        train(model_config(tokens, finished, masked=masked), place / str(masked), devices=jax.devices()[:1])
    return place / "False", place / "True"


@pytest.mark.full
def test_the_tokens_are_those_of_each_image_of_its_mirror_image_and_of_its_crops(finished, labelled, tokens):
    tokenizer, images = load_tokenizer(finished), np.load(labelled)
    splits = token_splits(tokens)
    held_out = np.stack([splits.eval[i]["tokens"] for i in range(20)])
    np.testing.assert_array_equal(held_out, tokenizer.encode(images["test"]))
    rows = [splits.train[i] for i in range(len(splits.train))]
    whole, cropped, mirrored, _ = np.split(np.stack([row["tokens"] for row in rows]), 4)
    np.testing.assert_array_equal(whole, tokenizer.encode(images["train"]))
    np.testing.assert_array_equal(mirrored, tokenizer.encode(images["train"][:, :, ::-1]))
    assert np.any(cropped != whole)
    np.testing.assert_array_equal([row["label"] for row in rows], np.tile(images["train_labels"], 4))
    assert splits.train.info.num_codes == (16,)
    assert splits.train.info.num_classes == len(splits.eval.class_names) == CLASSES


@pytest.mark.full
def test_what_is_written_depends_neither_on_interruptions_nor_on_the_batches(finished, labelled, tokens, tmp_path):
    write(finished, labelled, tmp_path, batch_size=24)
    assert contents(tmp_path) == contents(tokens)
    # As if it had been killed in the third shard.
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    (tmp_path / INDEX_FILE).write_text(json.dumps(index | {"complete": False, "splits": {}}))
    (tmp_path / "train-00002.npy").unlink()
    with pytest.raises(UserError, match=r"tokens that are not complete; run vqjax tokens"):
        token_splits(tmp_path)
    write(finished, labelled, tmp_path)
    assert contents(tmp_path) == contents(tokens)


@pytest.mark.full
def test_a_damaged_shard_is_named_and_rewritten(finished, labelled, tokens, tmp_path):
    write(finished, labelled, tmp_path)
    shard = tmp_path / "train-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001.npy is not the shard that was written \(its checksum is"):
        token_splits(tmp_path)
    write(finished, labelled, tmp_path)
    assert contents(tmp_path) == contents(tokens)


@pytest.mark.full
def test_shards_are_taken_only_if_they_are_known_to_be_whole_and_of_these_tokens(
    finished, labelled, tokens, tmp_path, monkeypatch
):
    """Bug: any file of the name was taken, of another tokenizer or damaged, where no index listed its checksum."""
    written = []

    def interrupted(file, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(file)
        write_shard(file, *rest)

    monkeypatch.setattr("vqjax.training.tokens.write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(finished, labelled, tmp_path)
    flipped = bytearray(written[0].read_bytes())
    flipped[-1] ^= 1
    written[0].write_bytes(flipped)
    (tmp_path / "train-00004.npy").write_bytes(b"no shard")
    before = written[1].stat().st_mtime_ns
    monkeypatch.setattr("vqjax.training.tokens.write_shard", write_shard)
    write(finished, labelled, tmp_path)
    assert written[1].stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(tokens)
    # Without the index they may be those of any tokenizer.
    (tmp_path / INDEX_FILE).unlink()
    np.save(written[2], np.zeros((20, 4, 4), np.uint8))
    write(finished, labelled, tmp_path)
    assert contents(tmp_path) == contents(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {}}, "a split has no shards"),
        ({"splits": []}, r"its `splits` is \[\]"),
        ({"splits": {"train": [{"rows": 3}], "eval": []}}, "its `splits` is"),
        ({"splits": {"train": [None], "eval": []}}, "its `splits` is"),
        ({"num_codes": 16}, "its `num_codes` is 16"),
        ({"num_codes": []}, r"its `num_codes` is \[\]"),
        ({"shape": None}, "its `shape` is None"),
        ({"scales": 3}, "its `scales` is 3"),
        ({"class_names": 3}, "its `class_names` is 3"),
        ({"grid": "4"}, "its `grid` is '4'"),
    ],
)
def test_an_index_that_cannot_be_is_named(tokens, tmp_path, changes, message):
    index = json.loads((tokens / INDEX_FILE).read_text()) | changes
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"tokens.json is not a valid index of tokens .*{message}.*; remove it"):
        token_splits(tmp_path)


def test_tokens_are_not_written_of_tokens(finished, tokens, tmp_path):
    changes = "--config.data.source=tokens", f"--config.data.name={tokens}"
    off = "--config.data.flip=False", "--config.data.crop_padding=None"
    with pytest.raises(UserError, match=r"config.data.source must be one of images, got 'tokens'"):
        write_tokens(finished, *changes, *off, out=tmp_path / "tokens")


def test_a_tokenizer_that_has_moved_rewrites_its_tokens(finished, labelled, tokens, tmp_path):
    """Bug: another directory was taken for another tokenizer."""
    moved, directory = shutil.copytree(finished, tmp_path / "moved"), shutil.copytree(tokens, tmp_path / "tokens")
    (directory / "train-00001.npy").unlink()
    write(moved, labelled, directory)
    before, after = contents(tokens), contents(directory)
    assert json.loads(after.pop(INDEX_FILE))["tokenizer"]["workdir"] == str(moved)
    assert after == {name: content for name, content in before.items() if name != INDEX_FILE}


def test_a_directory_of_other_tokens_is_not_touched(finished, labelled, tokens):
    before = contents(tokens)
    with pytest.raises(UserError, match=r"--out must be a new directory, .* whose `crops` is 2 instead of 1"):
        write(finished, labelled, tokens, crops=1)
    # Bug: other crops were taken for the same ones, and a directory could hold both.
    changes = f"--config.data.name={labelled}", "--config.data.crop_padding=3"
    with pytest.raises(UserError, match=r"whose `random` is .*'crop_padding': 2.* instead of .*'crop_padding': 3"):
        write_tokens(finished, *changes, out=tokens, flip=True, crops=2, shard_size=20)
    assert contents(tokens) == before


def test_a_tokenizer_that_has_not_made_the_tokens_is_refused(finished, tokens, tmp_path):
    index = json.loads((tokens / INDEX_FILE).read_text())
    for name, content in contents(tokens).items():
        (tmp_path / name).write_bytes(content)
    index["tokenizer"]["checksum"] = 64 * "0"
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"config.task.tokenizer must be the one that made the tokens"):
        train(model_config(tmp_path, finished), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_that_was_interrupted_ends_as_one_that_was_not(models, finished, tokens, tmp_path, masked):
    # Without pictures, and from elsewhere: neither belongs to the run.
    train(model_config(tokens, masked=masked, num_steps=2), tmp_path, devices=jax.devices()[:1])
    train(model_config(tokens, finished, masked=masked), tmp_path, devices=jax.devices()[:1])
    whole, resumed = (load_networks(run).params for run in (models[masked], tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.full
def test_a_tokenizer_is_found_from_elsewhere(finished, tokens, tmp_path, monkeypatch):
    """Bug: a relative path was kept, with which nothing could be evaluated from another directory."""
    monkeypatch.chdir(finished.parent)
    train(model_config(tokens, finished.name, num_steps=2), tmp_path / "run", devices=jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    config = complete(load_networks(tmp_path / "run").info.config)
    assert Path(config.task.tokenizer.workdir) == finished
    train_split, checksum = token_splits(tokens).train, load_tokenizer(finished).checksum
    # Where it is not there, the run that is noted with the tokens is taken.
    config.task.tokenizer.workdir = "nowhere"
    assert build_task(config, train_split).tokenizer.checksum == checksum
    index = json.loads((tokens / INDEX_FILE).read_text())
    shutil.copytree(tokens, tmp_path / "tokens")
    elsewhere = {"tokenizer": index["tokenizer"] | {"workdir": str(tmp_path / "gone")}}
    (tmp_path / "tokens" / INDEX_FILE).write_text(json.dumps(index | elsewhere))
    with pytest.raises(UserError, match=r"config.task.tokenizer: nowhere contains no checkpoint"):
        build_task(config, token_splits(tmp_path / "tokens").train)
    evaluate_workdir(tmp_path / "run", f"--config.task.tokenizer.workdir={finished}")


@pytest.mark.full
def test_images_do_not_depend_on_the_number_of_devices(models, tmp_path, monkeypatch):
    """Bug: rows that fill the devices moved the batches behind the first."""
    options = {"num": 12, "batch_size": 5}
    sample_images(models[0], out=tmp_path / "all.npz", **options)
    monkeypatch.setattr(sample, "make_mesh", lambda _, axes: make_mesh(jax.devices()[:1], axes))
    sample_images(models[0], out=tmp_path / "one.npz", **options)
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["tokens"] for name in ("all", "one")))


@pytest.mark.full
def test_pictures_of_samples_join_the_evaluations(models):
    for run in models:
        assert (run / "samples.png").exists()
        assert (run / "eval" / "samples.png").exists()


@pytest.mark.full
def test_an_evaluation_from_outside_measures_the_same(models):
    logged = [json.loads(line) for line in (models[0] / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in logged if "eval/bits_per_token" in line][-1]
    found = evaluate_workdir(models[0]).metrics
    assert found["bits_per_token"] == pytest.approx(last["eval/bits_per_token"], rel=1e-5)


@pytest.mark.full
def test_samples_are_files_that_evaluations_read(models, finished, tmp_path):
    file = tmp_path / "samples.npz"
    sample_images(models[0], out=file, num=30, batch_size=16, guidance=2.0, top_k=8)
    arrays = np.load(file)
    assert arrays["arr_0"].shape == (30, 16, 16, 3)
    assert arrays["arr_1"].tolist() == [0, 1, 2] * 10
    tokenizer = load_tokenizer(finished)
    decoded = np.asarray(tokenizer.decode(arrays["tokens"].astype(np.int32)))
    np.testing.assert_allclose(arrays["arr_0"], np.clip((decoded + 1) * 127.5, 0, 255), atol=0.51)
    assert len(whole_images(file)) == 30
    assert file.with_suffix(".png").exists()
    sample_images(models[0], out=tmp_path / "again.npz", num=30, batch_size=16, guidance=2.0, top_k=8)
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


@pytest.mark.full
def test_a_box_of_an_image_is_redrawn(models, labelled, tokens, tmp_path):
    file = tmp_path / "box.npz"
    sample_images(models[1], out=file, num=20, box=(1, 0, 2, 3), num_steps=3)
    drawn, splits = np.load(file), token_splits(tokens)
    before = np.stack([splits.eval[i]["tokens"] for i in range(20)])
    inside = np.zeros((4, 4), bool)
    inside[1:3, :3] = True
    np.testing.assert_array_equal(drawn["tokens"][:, ~inside], before[:, ~inside])
    assert np.any(drawn["tokens"][:, inside] != before[:, inside])
    np.testing.assert_array_equal(drawn["arr_1"], np.load(labelled)["test_labels"])
    # Of more images than there are, each is redrawn several times.
    sample_images(models[1], out=file, num=30, box=(1, 0, 2, 3), num_steps=3, classes=("2",))
    assert set(np.load(file)["arr_1"]) == {2}
    np.testing.assert_array_equal(np.load(file)["tokens"][20:, ~inside], before[:10, ~inside])


@pytest.mark.full
def test_classes_and_none_are_taken_in_turn(models, tmp_path):
    """Bug: ``--classes=none`` drew all classes."""
    for classes, expected in (("none", [CLASSES] * 4), ("2,none", [2, CLASSES] * 2), ("", [0, 1, 2, 0])):
        file = tmp_path / f"of {classes}.npz"
        flags = f"--workdir={models[0]}", f"--classes={classes}", "--num=4", f"--out={file}"
        _call(sample_images, "vqjax sample", "", flags)
        np.testing.assert_array_equal(np.load(file)["arr_1"], expected)


@pytest.mark.full
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_takes_only_tokens_like_those_that_it_has_learned(models, tokens, tmp_path, masked):
    """Bug: tokens of another tokenizer and of other grids were sampled and evaluated."""
    shutil.copytree(tokens, tmp_path / "tokens")
    file = tmp_path / "tokens" / INDEX_FILE
    index = json.loads(file.read_text())
    index["tokenizer"]["checksum"] = 64 * "0"
    file.write_text(json.dumps(index))
    # Without a tokenizer of the run, which would be refused itself.
    model = tmp_path / "model"
    train(model_config(tokens, masked=masked, num_steps=2), model, devices=jax.devices()[:1])
    moved = f"--config.data.name={tmp_path / 'tokens'}"
    with pytest.raises(UserError, match="like those of the training, whose `tokenizer` is"):
        evaluate_workdir(model, moved)
    index["tokenizer"] = None
    index["class_names"] += ["another"]
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"whose `num_classes` is {CLASSES}, got {CLASSES + 1}"):
        evaluate_workdir(model, moved)


@pytest.mark.full
@pytest.mark.parametrize(
    ("masked", "options", "message"),
    [
        (False, {"num_steps": 4}, "--num_steps must be left out for the task 'autoregressive'"),
        (False, {"box": (0, 0, 1, 1)}, "--box must be left out for the task 'autoregressive'"),
        (True, {"box": (3, 0, 2, 1)}, r"--box must be FIRST_ROW,FIRST_COLUMN,ROWS,COLUMNS within 4 x 4 tokens"),
        (False, {"classes": ("cat",)}, "--classes=cat is unknown; use one of '0', '1', '2', 'none'"),
        (False, {"num": 0}, "--num must be a positive integer, got 0"),
        (False, {"out": "samples.png"}, "--out must be a file name that ends in .npz in a writable directory, got"),
        (False, {"out": "/dev/null/samples.npz"}, r"--out must be a file name .* \(/dev/null: Not a directory\)"),
        (False, {"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        (False, {"tokenizer": "/nowhere"}, "--tokenizer must be the run .* got '/nowhere', which does not exist"),
        (False, {"guidance": math.nan}, "guidance must be a finite number, got nan"),
        (True, {"choice_temperature": -1.0}, "choice_temperature must be a finite number of at least 0, got -1.0"),
    ],
)
def test_mistakes_are_refused(models, tmp_path, masked, options, message):
    with pytest.raises(UserError, match=message):
        sample_images(models[masked], **{"out": tmp_path / "samples.npz", "num": 4} | options)
    assert not (tmp_path / "samples.npz").exists()


def test_the_run_of_a_tokenizer_has_no_samples(finished, tmp_path):
    with pytest.raises(UserError, match="--workdir must be the run of a model of tokens, got one of the task 'vqvae'"):
        sample_images(finished, out=tmp_path / "samples.npz")


@pytest.mark.full
def test_a_file_of_exported_tokens_is_a_source(finished, labelled, tmp_path):
    # The directory of the run belongs to all tests.
    run, file = shutil.copytree(finished, tmp_path / "tokenizer"), tmp_path / "tokens.npz"
    evaluate_workdir(run, f"--config.data.name={labelled}", split="train", export_tokens=file)
    splits = token_splits(file, eval_fraction=0.25)
    assert (len(splits.train), len(splits.eval)) == (36, 12)
    assert splits.train.info.tokenizer["checksum"] == load_tokenizer(finished).checksum
    config = model_config(file, finished)
    config.data.eval_fraction = 0.25
    assert train(config, tmp_path / "run", devices=jax.devices()[:1]).metrics["images"] == 12


@pytest.mark.full
def test_samples_of_tokens_of_an_earlier_checkpoint_are_decoded_by_it(finished, labelled, tmp_path):
    """Bug: a file of exported tokens did not say its step, and samples were decoded by the newest or not at all."""
    run, file = shutil.copytree(finished, tmp_path / "tokenizer"), tmp_path / "tokens.npz"
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    assert len(steps) > 1
    evaluate_workdir(run, f"--config.data.name={labelled}", step=steps[0], export_tokens=file)
    assert token_splits(file).train.info.tokenizer["step"] == steps[0]
    # Bug: the newest one was taken for pictures, and refused.
    train(model_config(file, run), tmp_path / "model", devices=jax.devices()[:1])
    sample_images(tmp_path / "model", out=tmp_path / "samples.npz", num=4)
    drawn = np.load(tmp_path / "samples.npz")
    images = load_tokenizer(run, steps[0]).decode(drawn["tokens"])
    np.testing.assert_allclose(drawn["arr_0"] / 127.5 - 1, np.clip(images, -1, 1), atol=1.1 / 127.5)


RESIDUAL = {"name": "residual", "quantizer": {"name": "vq", "num_codes": 8}, "num_quantizers": 3}
GROUPED = {"name": "grouped", "quantizer": RESIDUAL | {"num_quantizers": 2}, "groups": 2}
MULTI_SCALE = {"name": "multi_scale_vq", "quantizer": {"name": "vq", "num_codes": 8}, "scales": (1, 2, 4)}


@pytest.mark.full
@pytest.mark.parametrize(
    ("quantizer", "shape", "task", "model"),
    [
        (RESIDUAL, (4, 4, 3), "autoregressive", {"name": "causal_transformer"}),
        (RESIDUAL, (4, 4, 3), "masked_tokens", {"name": "masked_transformer"}),
        # Bugs: the axis of one stage was taken for one of a clip, as were two axes.
        (RESIDUAL | {"num_quantizers": 1}, (4, 4, 1), "autoregressive", {"name": "causal_transformer"}),
        (GROUPED, (4, 4, 2, 2), "masked_tokens", {"name": "masked_transformer"}),
        (MULTI_SCALE, (21,), "next_scale", {"name": "next_scale_transformer"}),
        (None, (4, 4), "autoregressive", {"name": "causal_transformer", "factors": (4, 4)}),
        (None, (4, 4), "masked_tokens", {"name": "masked_transformer", "factors": (2, 8)}),
    ],
)
def test_tokens_of_any_shape_have_a_model(finished, config, labelled, tmp_path, quantizer, shape, task, model):
    run = finished
    if quantizer is not None:
        run, config.quantizer, config.num_steps = tmp_path / "tokenizer", quantizer, 2
        train(config, run, devices=jax.devices()[:1])
    write(run, labelled, tmp_path / "tokens", flip=False, crops=1)
    generator = model_config(tmp_path / "tokens", run, num_steps=2)
    generator.task.name, generator.model = task, {"dim": 16, "depth": 1, "heads": 2} | model
    train(generator, tmp_path / "model", devices=jax.devices()[:1])
    sample_images(tmp_path / "model", num=6, batch_size=8, guidance=1.5)
    samples = np.load(tmp_path / "model" / "samples.npz")
    assert samples["tokens"].shape == (6, *shape)
    assert samples["arr_0"].shape == (6, 16, 16, 3)
    assert samples["arr_0"].std() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"name": "sonnet"}},
            "config.model.name must be one of causal_transformer, masked_transformer, ",
        ),
        ({"task": {"name": "vqvae"}}, "config.task.name must be that of a model of tokens for 'causal_transformer'"),
        ({"task": {"name": "masked_tokens"}}, "The task 'masked_tokens' needs a MaskedTransformer"),
        ({"loss": {"name": "mse"}}, "config.loss must be None for the model 'causal_transformer'"),
        ({"gradient_accumulation": 2}, "config.gradient_accumulation must be None for the model"),
        ({"data": {"source": "photos", "image_size": 32}}, "config.data.source must be tokens for the model"),
    ],
)
def test_what_does_not_go_with_tokens_is_refused(tokens, tmp_path, changes, message):
    config = model_config(tokens)
    for name, value in changes.items():
        config[name] = value
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("size", ["", "tiny"])
@pytest.mark.parametrize("masked", ["", "masked"])
def test_the_config_builds_at_its_full_size(finished, size, masked):
    config = load(f"generate:{','.join(filter(None, (size, masked, f'tokenizer={finished}')))}")
    info = TokenInfo(num_codes=(512,), shape=(8, 8), num_classes=10)
    rows = [(np.zeros((2, 8, 8), np.uint16), np.zeros(2, np.int32))]
    dataset = TokenDataset("zero", rows, info, tuple("abcdefghij"))
    state = check_fits(build_task(config, dataset), jax.random.key(0), example_batch(dataset))
    millions = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    assert millions == pytest.approx({"": 86, "tiny": 0.89 if masked else 1.18}[size], rel=0.1)


def test_tokens_are_augmented_when_they_are_written(tokens, tmp_path):
    config = model_config(tokens)
    config.data.flip = True
    with pytest.raises(UserError, match=r"config.data.flip must be off for tokens, got True; .*vqjax tokens --flip"):
        train(config, tmp_path / "run")
