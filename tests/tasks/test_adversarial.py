"""Two networks with an optimizer each, and a frozen one, pass through the same loop as a single network."""

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from helpers.adversarial import DISCRIMINATOR, FEATURES
from vqjax.checkpointing.checkpoints import load_networks, load_tokenizer
from vqjax.data import load_splits
from vqjax.errors import UserError
from vqjax.models.tokenizer import NETWORK
from vqjax.reporting import MetricWriter
from vqjax.training.build import build_task, example_batch
from vqjax.training.config import validate
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

pytestmark = pytest.mark.full


@pytest.fixture
def config(config):
    config.task = {"name": "adversarial_in_tests", "ema_decay": 0.9}
    config.optimizer = {
        NETWORK: {"name": "adam", "learning_rate": 1e-3, "b1": 0.5},
        DISCRIMINATOR: {"name": "adamw", "learning_rate": 2e-3, "schedule": "linear", "clip_norm": 1.0},
    }
    return config


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("devices", "steps_per_dispatch"), [(1, 1), (8, 3)])
def test_a_run_that_was_killed_ends_like_one_that_was_not(config, tmp_path, monkeypatch, devices, steps_per_dispatch):
    """Killed at step 8, after the checkpoint of step 5: both networks and optimizers, averages and statistics."""
    devices, config.steps_per_dispatch = jax.devices()[:devices], steps_per_dispatch
    whole = train(config, tmp_path / "whole", devices=devices)

    def die(self, step, prefix, values):
        if step == 8:
            raise MemoryError("killed")

    monkeypatch.setattr(MetricWriter, "scalars", die)
    with pytest.raises(MemoryError):
        train(config, tmp_path / "killed", devices=devices)
    monkeypatch.undo()
    assert load_networks(tmp_path / "killed").info.step == 5
    resumed = train(config, tmp_path / "killed", devices=devices)
    networks, others = (load_networks(tmp_path / run) for run in ("whole", "killed"))
    chex.assert_trees_all_equal(networks._replace(info=None), others._replace(info=None))
    # Lines before the checkpoint went nowhere here; the ones after it are the same.
    assert [line for line in lines(tmp_path / "whole") if line["step"] > 5] == lines(tmp_path / "killed")
    assert resumed.metrics == whole.metrics
    # The frozen network is in no checkpoint, and made again.
    assert networks.params.keys() == networks.ema_params.keys() == {NETWORK, DISCRIMINATOR}
    assert networks.variables[DISCRIMINATOR].keys() == {"batch_stats"}
    assert evaluate_workdir(tmp_path / "killed").metrics == pytest.approx(whole.metrics, rel=1e-5)
    loaded = load_tokenizer(tmp_path / "killed")
    chex.assert_trees_all_equal(loaded.variables["params"], networks.ema_params[NETWORK])


def test_each_network_moves_by_its_own_optimizer_and_the_frozen_one_not_at_all(config):
    config = validate(config)
    dataset = load_splits(config.data).train
    task = build_task(config, dataset)
    batch = example_batch(dataset) | {"image": np.stack([dataset[i]["image"] for i in range(8)])}
    state = task.init(jax.random.key(0), batch)
    assert state.opt_state.keys() == {NETWORK, DISCRIMINATOR}
    assert state.frozen.keys() == {FEATURES}
    after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
    assert {"loss", "discriminator_loss", "gradient_norm", "discriminator_gradient_norm"} <= metrics.keys()
    chex.assert_trees_all_equal(after.frozen, state.frozen)
    change = jax.tree.map(lambda new, old: float(np.max(np.abs(new - old))), after.params, state.params)
    # Adam's first step is as long as the learning rate.
    assert max(jax.tree.leaves(change[NETWORK])) == pytest.approx(1e-3, rel=1e-2)
    assert max(jax.tree.leaves(change[DISCRIMINATOR])) == pytest.approx(2e-3, rel=1e-2)


def test_a_mistake_in_one_of_the_optimizers_is_named(config, tmp_path):
    config.optimizer[DISCRIMINATOR].learning_rate = -1.0
    with pytest.raises(UserError, match=r"config\.optimizer\.discriminator\.learning_rate must be above 0, got -1\.0"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
