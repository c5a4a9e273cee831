"""A run resumes exactly, divides over devices, and leaves what its users expect."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from jaxtyping import PyTree

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.discovery import find_checkpoint
from vqjax.data import ResidentFeed, fingerprint, load_splits
from vqjax.errors import UserError
from vqjax.evaluation import load_tokens
from vqjax.evaluation.partial import PartialSums
from vqjax.reporting import MetricWriter
from vqjax.runtime.signals import Interrupted
from vqjax.runtime.workdir import exclusive, usable_workdir
from vqjax.training import loop
from vqjax.training.config import validate
from vqjax.training.evaluate import evaluate_state, evaluate_workdir
from vqjax.training.loop import train
from vqjax.training.resume import check_images

ONE_DEVICE = jax.devices()[:1]


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def variables(workdir: Path) -> PyTree:
    return load_tokenizer(workdir).variables


def assert_same_run(one: Path, other: Path) -> None:
    chex.assert_trees_all_equal(variables(one), variables(other))
    assert lines(one) == lines(other)


def test_a_run_leaves_checkpoints_metrics_report_and_picture(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "eval",
        "metrics.jsonl",
        "reconstructions.png",
    ]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["10", "12"]
    assert sorted(path.name for path in (finished / "eval").iterdir()) == [
        "metrics.json",
        "reconstructions.png",
        "report.md",
    ]
    logged = lines(finished)
    assert [line["step"] for line in logged if "train/loss" in line] == [4, 8, 12]
    assert [line["step"] for line in logged if "eval/psnr" in line] == [6, 12]
    assert {"train/perplexity", "train/dead_codes", "train/angle", "train/norm_ratio"} <= logged[0].keys()
    assert logged[0]["train/learning_rate"] == pytest.approx(1e-3)


def test_the_hyperparameters_are_beside_the_numbers(finished, config):
    written = json.loads((finished / "config.json").read_text())
    assert written == json.loads(json.dumps(validate(config).to_dict()))
    assert json.loads((finished / "eval" / "metrics.json").read_text())["config"] == written


@pytest.mark.full
def test_the_log_has_the_learning_rate_of_the_last_update(config, tmp_path):
    config.optimizer.schedule, config.optimizer.learning_rate = "linear", 0.012
    train(config, tmp_path, devices=ONE_DEVICE)
    rates = [line["train/learning_rate"] for line in lines(tmp_path) if "train/learning_rate" in line]
    assert rates == pytest.approx([0.009, 0.005, 0.001])


@pytest.mark.full
def test_a_run_whose_images_have_moved_goes_on(finished, config, tmp_path):
    """Bug: the path was compared, so that a data set on another disk was another one."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(config.data.name, tmp_path / "moved.npz")
    config.data.name = str(tmp_path / "moved.npz")
    config.num_steps = 13
    train(config, tmp_path / "run", devices=ONE_DEVICE)
    assert load_tokenizer(tmp_path / "run").step == 13
    assert load_tokenizer(tmp_path / "run").config["data"]["name"] == config.data.name


@pytest.mark.full
def test_other_images_can_be_evaluated_beside_those_of_the_run(finished, config, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "eval" / "metrics.json").read_text()
    np.save(tmp_path / "other.npy", np.random.default_rng(1).integers(0, 256, (9, 16, 16, 3), np.uint8))
    name = f"--config.data.name={tmp_path}/other.npy"
    result = evaluate_workdir(tmp_path / "run", name, split="all", export_tokens=tmp_path / "tokens.npz")
    assert result.metrics["images"] == 9
    assert sorted(load_tokens(tmp_path / "tokens.npz").origins) == [f"images[{row}]" for row in range(9)]
    assert (tmp_path / "run" / "eval" / "metrics.json").read_text() == before
    assert (tmp_path / "run" / "eval_all_other.npy_train_other.npy_eval" / "report.md").exists()
    with pytest.raises(UserError, match=r"^--config.seed is unknown to an evaluation, which takes --config.data.FIELD"):
        evaluate_workdir(tmp_path / "run", "--config.seed=3")
    # Other images under the same name are told of.
    shutil.copy(config.data.name, tmp_path / "moved.npz")
    evaluate_workdir(tmp_path / "run", f"--config.data.name={tmp_path}/moved.npz")
    assert "note: " not in capsys.readouterr().err


@pytest.mark.full
def test_an_evaluation_that_ends_before_all_is_written_need_not_be_repeated(finished, tmp_path, capsys, monkeypatch):
    """Bug: the partial sums were gone before the report was there."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr("vqjax.training.evaluate.PartialSums", functools.partial(PartialSums, every=0.0))

    def refused(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr("vqjax.training.evaluate.save_tokens", refused)
        with pytest.raises(OSError, match="No space left"):
            evaluate_workdir(tmp_path / "run", export_tokens=tmp_path / "tokens.npz")
    result = evaluate_workdir(tmp_path / "run", export_tokens=tmp_path / "tokens.npz")
    assert "goes on from there" in capsys.readouterr().err
    assert len(load_tokens(tmp_path / "tokens.npz").indices) == result.metrics["images"]
    assert not list((tmp_path / "run" / "eval").glob("partial-*"))


@pytest.mark.full
@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("test", "held-out")])
def test_a_run_does_not_go_on_with_other_labels_or_held_out_images(config, tmp_path, split, name):
    """Bug: the fingerprint left out labels and the held-out split."""
    arrays = dict(np.load(config.data.name))
    arrays |= {f"{part}_labels": np.arange(len(arrays[part])) % 3 for part in ("train", "test")}
    np.savez(tmp_path / "images.npz", **arrays)
    config.num_steps, config.data.name = 1, str(tmp_path / "images.npz")
    train(config, tmp_path / "run", devices=ONE_DEVICE)
    np.savez(tmp_path / "images.npz", **arrays | {f"{split}_labels": 2 - arrays[f"{split}_labels"]})
    with pytest.raises(UserError, match=f"The {name} images must be those of the run"):
        train(config, tmp_path / "run", devices=ONE_DEVICE)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_checkpoint_and_every_so_many_are_kept(config, tmp_path, mode):
    config.num_steps, config.eval_every, config.checkpoint_every = 12, 1, 1
    config.keep_checkpoints, config.keep_every = 1, 5
    with config.ignore_type():
        config.keep_best, config.keep_best_mode = "perplexity_split", mode
    train(config, tmp_path, devices=ONE_DEVICE)
    found = {line["step"]: line["eval/perplexity_split"] for line in lines(tmp_path) if "eval/psnr" in line}
    best = (max if mode == "max" else min)(found, key=lambda step: found[step])
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {5, 10, 12, best}
    assert load_tokenizer(tmp_path, best=True).step == best
    assert evaluate_workdir(tmp_path, best=True).metrics["perplexity_split"] == pytest.approx(found[best], rel=1e-5)
    # Damage to the metrics of an old checkpoint does not keep the newest from being read.
    (tmp_path / "checkpoints" / "5" / "metrics" / "metrics").write_text("")
    assert load_tokenizer(tmp_path).step == 12
    with pytest.raises(UserError, match=r"metrics of the checkpoints in .* cannot be read"):
        load_tokenizer(tmp_path, best=True)


@pytest.mark.full
def test_a_run_ends_when_checkpoints_are_no_longer_better_and_goes_on_with_more_patience(config, tmp_path, capfd):
    config.num_steps, config.log_every, config.eval_every, config.checkpoint_every = 12, 2, 2, 2
    with config.ignore_type():
        # Of this run it falls from the first checkpoint on.
        config.keep_best, config.patience = "perplexity_split", 2
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    result = train(config, whole, devices=ONE_DEVICE)
    assert lines(whole)[-1]["step"] == 6
    assert (
        "better in perplexity_split for config.patience=2 in a row, so the run ended at step 6"
        in capfd.readouterr().err
    )
    again = train(config, whole, devices=ONE_DEVICE)
    assert again.metrics == result.metrics
    config.num_steps = 4
    train(config, interrupted, devices=ONE_DEVICE)
    config.num_steps = 12
    assert train(config, interrupted, devices=ONE_DEVICE).metrics == result.metrics
    assert load_tokenizer(interrupted).step == 6
    config.patience = 3
    train(config, whole, devices=ONE_DEVICE)
    assert (load_tokenizer(whole).step, load_tokenizer(whole, best=True).step) == (8, 2)


@pytest.mark.full
@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_equal_and_missing_metrics_are_no_better(config, tmp_path, monkeypatch, value):
    """Bug: ties and metrics that were never a number went on to the end."""

    def measured(*args, **kwargs):
        result = evaluate_state(*args, **kwargs)
        return dataclasses.replace(result, metrics=result.metrics | {"psnr": value})

    monkeypatch.setattr("vqjax.training.loop.evaluate_state", measured)
    config.num_steps, config.eval_every, config.checkpoint_every = 6, 1, 1
    with config.ignore_type():
        config.keep_best, config.patience = "psnr", 2
    train(config, tmp_path, devices=ONE_DEVICE)
    assert load_tokenizer(tmp_path).step == (3 if value == 2 else 2)


def test_the_best_checkpoint_is_that_of_a_run_that_keeps_it(finished):
    with pytest.raises(UserError, match=r"must be the directory of a run with config.keep_best for --best"):
        load_tokenizer(finished, best=True)


@pytest.mark.full
@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_not_square_or_of_other_channels_train_and_evaluate(config, tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 24, channels), np.uint8)
    np.savez(tmp_path / "images.npz", train=images[:12], test=images[12:])
    data = {"source": "arrays", "name": str(tmp_path / "images.npz"), "image_size": (8, 24), "channels": channels}
    config.data = data | {"flip": True, "crop_padding": 2}
    config.model.image_channels = channels
    config.num_steps = 2
    for limit, name in ((1024, "resident"), (0, "streamed")):
        config.data.resident_limit_mb = limit
        result = train(config, tmp_path / name, devices=ONE_DEVICE)
        assert result.collected["reconstruction"].shape == (8, 8, 24, channels)
        assert (tmp_path / name / "reconstructions.png").exists()
    chex.assert_trees_all_equal(variables(tmp_path / "resident"), variables(tmp_path / "streamed"))
    tokens = load_tokenizer(tmp_path / "resident").encode(images)
    assert tokens.shape == (20, 2, 6)


def test_images_of_other_channels_than_the_model_are_refused(config, tmp_path):
    config.data.channels = 1
    with pytest.raises(UserError, match=r"images must have the 3 channels .* set config.model.image_channels=1 or"):
        train(config, tmp_path / "run", devices=ONE_DEVICE)
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_directory_changes_nothing(finished, config, capsys):
    before = variables(finished), lines(finished)
    result = train(config, finished, devices=ONE_DEVICE)
    chex.assert_trees_all_equal((variables(finished), lines(finished)), before)
    assert result.metrics["images"] == 20
    assert "resuming at step 12" in capsys.readouterr().err


def test_places_are_printed_as_the_directory_was_given(finished, config, capsys, monkeypatch):
    monkeypatch.chdir(finished.parent)
    train(config, finished.name, devices=ONE_DEVICE)
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert printed == [
        f"report:  {finished.name}/eval/report.md",
        f"picture: {finished.name}/eval/reconstructions.png",
        f"checkpoint: {finished.name}/checkpoints/12",
    ]


@pytest.mark.full
def test_a_run_cut_between_checkpoints_and_continued_equals_one_that_was_not(finished, config, tmp_path, monkeypatch):
    """Killed at step 8, after the checkpoint of step 5 and the log line of step 8, which has to be written again."""

    def die(self, step, prefix, values):
        real_scalars(self, step, prefix, values)
        if step == 8:
            raise MemoryError("killed")

    real_scalars = MetricWriter.scalars
    monkeypatch.setattr(MetricWriter, "scalars", die)
    with pytest.raises(MemoryError):
        train(config, tmp_path, devices=ONE_DEVICE)
    monkeypatch.undo()
    assert lines(tmp_path)[-1]["step"] == 8
    assert load_tokenizer(tmp_path).step == 5
    train(config, tmp_path, devices=ONE_DEVICE)
    assert_same_run(finished, tmp_path)


@pytest.mark.full
def test_a_longer_run_continues_a_shorter_one_exactly(finished, config, tmp_path):
    """Steps 7 to 12 come after a checkpoint in the middle of a log window, whose sums are part of the state."""
    config.num_steps = 7
    train(config, tmp_path, devices=ONE_DEVICE)
    config.num_steps = 12
    train(config, tmp_path, devices=ONE_DEVICE)
    chex.assert_trees_all_equal(variables(finished), variables(tmp_path))


def test_a_run_does_not_continue_on_other_images(finished, config, tmp_path):
    """Bug: a data file replaced between run and resume went unnoticed."""
    with np.load(config.data.name) as images:
        np.savez(tmp_path / "images.npz", train=images["train"][::-1], test=images["test"])
    other = tmp_path / "run"
    shutil.copytree(finished, other)
    found = find_checkpoint(other)
    with pytest.raises(UserError, match="training images must be those of the run"):
        check_images(other, found, fingerprint(load_splits(config_of(config, tmp_path / "images.npz").data).train))
    check_images(other, found, fingerprint(load_splits(config.data).train))


def config_of(config, images_file):
    config = config.copy_and_resolve_references()
    config.data.name = str(images_file)
    return config


def test_a_shorter_run_than_the_one_there_is_refused(finished, config):
    config.num_steps = 11
    with pytest.raises(UserError, match=r"config\.num_steps must be at least 12, the steps that .* has taken, got 11"):
        train(config, finished, devices=ONE_DEVICE)


def test_two_runs_do_not_share_a_directory(finished, config):
    """Bug: two runs in one directory tore each other's checkpoints and metrics apart."""
    with (
        exclusive(finished),
        pytest.raises(UserError, match=r"--workdir=.* is in use by another run"),
    ):
        train(config, finished, devices=ONE_DEVICE)


def test_a_run_that_ended_while_this_one_started_is_looked_at_again(finished, config, monkeypatch):
    """Bug: what was checked before the lock was not what was continued after it."""
    monkeypatch.setattr(loop, "find_checkpoint", lambda workdir: None)
    before = sorted(path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*"))
    config.seed = 7
    with pytest.raises(UserError, match=r"config\.seed must be 0, as in the run that .* holds, got 7"):
        train(config, finished, devices=ONE_DEVICE)
    assert sorted(path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*")) == before


def test_a_run_needs_a_directory_that_can_be_named():
    with pytest.raises(UserError, match="must have a name in UTF-8"):
        usable_workdir(os.fsdecode(b"/tmp/\xff"))


def test_a_run_needs_a_directory_that_can_be_written(tmp_path, monkeypatch):
    # The user of the tests may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(UserError, match=r"--workdir must be writable, got .*; use another path"):
        usable_workdir(tmp_path / "run")


def test_a_run_needs_data_that_can_be_named(config, tmp_path):
    """Bug: the file of the config could not be written, which ended with a stack trace."""
    config.data.name = os.fsdecode(b"/tmp/\xff.npz")
    with pytest.raises(UserError, match=r"config\.data\.name must be a path in UTF-8, got .*; rename it"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.full) for number in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_saves_the_step_it_arrived_in(finished, config, tmp_path, monkeypatch, number):
    stage = ResidentFeed.stage

    def stage_then_signal(self, step, count):
        if step == 6:
            os.kill(os.getpid(), number)
        return stage(self, step, count)

    monkeypatch.setattr(ResidentFeed, "stage", stage_then_signal)
    with pytest.raises(Interrupted, match="stopped at step 7") as stopped:
        train(config, tmp_path, devices=ONE_DEVICE)
    assert stopped.value.signal_number == number
    monkeypatch.undo()
    assert load_tokenizer(tmp_path).step == 7
    train(config, tmp_path, devices=ONE_DEVICE)
    assert_same_run(finished, tmp_path)


@pytest.mark.full
def test_several_steps_per_dispatch_are_the_same_steps(finished, config, tmp_path):
    config.steps_per_dispatch = 3
    train(config, tmp_path, devices=ONE_DEVICE)
    chex.assert_trees_all_close(variables(finished), variables(tmp_path), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_streamed_images_train_like_resident_ones(finished, config, tmp_path):
    config.data.resident_limit_mb = 0
    train(config, tmp_path, devices=ONE_DEVICE)
    chex.assert_trees_all_equal(variables(finished), variables(tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("devices", [1, 4])
def test_a_batch_in_parts_trains_like_a_whole_one(finished, config, tmp_path, devices):
    """One codebook update for each optimizer step: use, replacement and drawn codes see the whole batch."""
    config.gradient_accumulation = 2
    train(config, tmp_path, devices=jax.devices()[:devices])
    chex.assert_trees_all_close(variables(finished), variables(tmp_path), rtol=1e-4, atol=1e-5)
    counts = [variables(run)["codebook"]["quantizer"]["counts"] for run in (finished, tmp_path)]
    np.testing.assert_allclose(*counts, rtol=1e-6)


def test_a_batch_in_parts_needs_rows_for_every_device(config, tmp_path):
    config.gradient_accumulation = 4
    with pytest.raises(UserError, match=r"batch_size must be .* divided over 4 devices in 4 parts, got 8; use 16"):
        train(config, tmp_path / "run", devices=jax.devices()[:4])
    config.gradient_accumulation = 3
    with pytest.raises(UserError, match=r"gradient_accumulation must be a divisor of batch_size=8 or None, got 3"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_where_codes_are_searched_does_not_bind_a_run_to_its_devices(finished, config, tmp_path):
    """It trains alike; and the bug: a run on four devices could neither continue nor be evaluated on one."""
    workdir = tmp_path / "run"
    config.num_steps, config.quantizer.codebook_shards = 5, 4
    train(config, workdir)
    config.num_steps, config.quantizer.codebook_shards = 12, 1
    train(config, workdir, devices=ONE_DEVICE)
    chex.assert_trees_all_close(variables(finished), variables(workdir), rtol=1e-4, atol=1e-5)


def test_a_codebook_is_not_divided_over_devices_that_do_not_share_equally(config, tmp_path):
    config.quantizer.codebook_shards = 4
    with pytest.raises(UserError, match=r"codebook_shards must be a divisor of 1, the number of devices, got 4"):
        train(config, tmp_path, devices=ONE_DEVICE)
