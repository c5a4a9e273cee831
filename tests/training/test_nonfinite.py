"""A step whose loss or gradient is no finite number ends the run, or is left out; nothing it did remains."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import batch_indices
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training import nonfinite
from vqjax.training.loop import train

ONE_DEVICE = jax.devices()[:1]


@pytest.fixture
def overflow(monkeypatch):
    """Makes the gradient of some steps, from 0, overflow while their loss is still finite."""

    train_step = VQVAETask.train_step

    def at(*steps: int) -> None:
        def spoiled(self, state, batch, key):
            after, metrics = train_step(self, state, batch, key)
            bad = jnp.isin(state.step, jnp.array(steps))
            params = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), after.params)
            variables = jax.tree.map(lambda x: jnp.where(bad, jnp.full_like(x, 7), x), after.variables)
            metrics |= {"gradient_norm": jnp.where(bad, jnp.inf, metrics["gradient_norm"])}
            return after.replace(params=params, variables=variables), metrics

        monkeypatch.setattr(VQVAETask, "train_step", spoiled)

    return at


@pytest.mark.parametrize("steps_per_dispatch", [1, pytest.param(4, marks=pytest.mark.full)])
def test_the_run_ends_and_names_the_step_its_images_and_the_checkpoint(config, tmp_path, overflow, steps_per_dispatch):
    """Not the step at which somebody looked, which may be many later."""
    overflow(6)
    config.steps_per_dispatch = steps_per_dispatch
    images = batch_indices(config.seed, 6, config.batch_size, num_images=48).tolist()
    with pytest.raises(FloatingPointError) as error:
        train(config, tmp_path, devices=ONE_DEVICE)
    message = str(error.value)
    assert "not finite at step 7, whose images are number " + ", ".join(map(str, images)) in message
    assert message.count(f"the last checkpoint is {tmp_path}/checkpoints/5.") == 1
    assert json.loads((tmp_path / "nonfinite_step.json").read_text()) == {
        "step": 7,
        "images": images,
        "last_checkpoint": f"{tmp_path}/checkpoints/5",
    }
    assert load_tokenizer(tmp_path).step == 5


@pytest.mark.full
@pytest.mark.parametrize("steps_per_dispatch", [1, pytest.param(4, marks=pytest.mark.full)])
def test_a_step_that_is_skipped_leaves_nothing_behind(config, tmp_path, overflow, capsys, steps_per_dispatch):
    overflow(6)
    config.nonfinite, config.steps_per_dispatch, config.num_steps = "skip", steps_per_dispatch, 7
    train(config, tmp_path / "skipped", devices=ONE_DEVICE)
    assert "step 7 skipped: its loss or gradient is not finite" in capsys.readouterr().err
    # The same program but for one number, so that the compiler adds everything up in the same order.
    overflow(99)
    config.num_steps = 6
    train(config, tmp_path / "shorter", devices=ONE_DEVICE)
    chex.assert_trees_all_equal(*(load_tokenizer(tmp_path / run).variables for run in ("skipped", "shorter")))
    windows = [json.loads(line) for line in (tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["train/skipped"] for line in windows if "train/loss" in line} == {4: 0.0, 7: 1.0}
    assert all(np.isfinite(value) for line in windows for value in line.values() if value is not None)


@pytest.mark.full
def test_a_run_that_stopped_goes_on_without_the_step(config, tmp_path, overflow):
    overflow(6)
    with pytest.raises(FloatingPointError):
        train(config, tmp_path, devices=ONE_DEVICE)
    config.nonfinite = "skip"
    train(config, tmp_path, devices=ONE_DEVICE)
    assert load_tokenizer(tmp_path).step == 12


@pytest.mark.full
def test_nothing_is_made_of_a_state_that_is_not_finite(config, tmp_path, overflow):
    """Bug: an evaluation before the next line of the log drew a picture of nothing and logged it."""
    overflow(6)
    config.eval_every, config.log_every = 8, 100
    with pytest.raises(FloatingPointError, match="not finite at step 7"):
        train(config, tmp_path, devices=ONE_DEVICE)
    assert not (tmp_path / "reconstructions.png").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.full
def test_a_log_line_of_skipped_steps_alone_has_no_numbers(config, tmp_path, overflow):
    """Bug: it ended the run, and every run that was to continue it."""
    overflow(6)
    config.nonfinite, config.log_every, config.num_steps = "skip", 1, 8
    train(config, tmp_path, devices=ONE_DEVICE)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: (line["train/loss"], line["train/skipped"]) for line in lines if "train/loss" in line}
    assert losses[7] == (None, 1.0)
    assert all(loss is not None and skipped == 0 for step, (loss, skipped) in losses.items() if step != 7)


@pytest.mark.full
def test_a_run_that_can_only_skip_ends(config, tmp_path, overflow, monkeypatch):
    monkeypatch.setattr(nonfinite, "MOST_IN_A_ROW", 4)
    overflow(*range(4, 8))
    config.nonfinite = "skip"
    with pytest.raises(FloatingPointError, match=r"not one of the last 4 steps before step 9 had .* Lower config"):
        train(config, tmp_path, devices=ONE_DEVICE)
