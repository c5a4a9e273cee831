"""Metric files after kills and resumes."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from vqjax.errors import UserError
from vqjax.reporting import MetricWriter


def writer(workdir, resume_step=None, tensorboard=False, wandb=False):
    return MetricWriter(workdir, resume_step=resume_step, tensorboard=tensorboard, wandb=wandb, config={"seed": 0})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_steps(workdir, steps, **options):
    metrics = writer(workdir, **options)
    for step in steps:
        metrics.scalars(step, "train", {"loss": 1.0 / step})
    metrics.close()


def test_killed_and_resumed_leaves_the_same_file_as_never_killed(tmp_path):
    write_steps(tmp_path / "whole", [1, 2, 3, 4])
    write_steps(tmp_path / "killed", [1, 2, 3])
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    write_steps(tmp_path / "killed", [3, 4], resume_step=2)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_run_from_the_beginning_sets_the_lines_of_a_run_without_checkpoint_aside(tmp_path):
    """Bug: they were erased, also those of somebody who had only moved the checkpoints away."""
    write_steps(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write_steps(tmp_path, [1])
    write_steps(tmp_path, [3])
    assert [line["step"] for line in lines(tmp_path)] == [3]
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == before
    assert len((tmp_path / "metrics.2.jsonl").read_text().splitlines()) == 1


def test_an_interrupted_trimming_loses_nothing(tmp_path, monkeypatch):
    write_steps(tmp_path, [1, 2])

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writer(tmp_path, resume_step=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_are_valid_json_and_on_disk_at_once(tmp_path):
    metrics = writer(tmp_path)
    metrics.scalars(7, "eval", {"psnr": float("inf"), "loss": np.float32("nan"), "ssim": None, "dead_codes": 3})
    assert lines(tmp_path) == [
        {"step": 7, "eval/psnr": None, "eval/loss": None, "eval/ssim": None, "eval/dead_codes": 3}
    ]
    metrics.close()


def test_tensorboard_hides_the_steps_that_are_written_again(tmp_path, monkeypatch):
    records = []
    monkeypatch.setattr(RecordWriter, "write", lambda self, data: records.append(Event.FromString(bytes(data))))
    metrics = writer(tmp_path, resume_step=2, tensorboard=True)
    metrics.scalars(3, "train", {"loss": 0.5})
    metrics.image(3, "eval/reconstructions", np.zeros([4, 6, 3], np.uint8))
    metrics.close()
    assert [event.step for event in records if event.session_log.status] == [3]
    tags = [value.tag for event in records for value in event.summary.value]
    assert tags == ["train/loss", "eval/reconstructions"]


def test_missing_wandb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "vqjax\[wandb\]"'):
        writer(tmp_path, wandb=True)


def test_wandb_without_a_login_says_what_to_do(tmp_path, monkeypatch):
    def init(**options):
        raise RuntimeError("No API key configured.")

    wandb = types.ModuleType("wandb")
    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match=r"wandb=True could not start a run \(No API key configured\.?\); log in with"):
        writer(tmp_path, wandb=True)


class WandbRun:
    def __init__(self):
        self.logged = []
        self.finished = False

    def define_metric(self, name, step_metric):
        assert step_metric == "step"

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, monkeypatch):
    started = []
    run = WandbRun()
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for resume_step in (None, 1, None):
        metrics = writer(tmp_path, resume_step=resume_step, wandb=True)
        metrics.scalars(2, "train", {"loss": 0.5})
        metrics.close()
    first, resumed, another = (options["id"] for options in started)
    assert first == resumed != another
    assert run.logged[0] == {"step": 2, "train/loss": 0.5}
    assert run.finished


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    metrics = writer(tmp_path, tensorboard=True, wandb=True)
    metrics.scalars(1, "train", {"loss": 0.5})
    metrics.image(1, "eval/reconstructions", np.zeros([4, 6, 3], np.uint8))
    metrics.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_of_once_and_by_name(tmp_path):
    """Bug: closing tried the line again, and that error, without a name, was the one that was shown."""
    metrics = writer(tmp_path)
    metrics._lines.close()
    with open("/dev/full", "a") as metrics._lines:
        with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
            metrics.scalars(1, "train", {"loss": 0.5})
        metrics.close()
