"""Runs of the study: each is a run of the trainer in a directory of its own."""

import functools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from studies.common.records import Results, Run, slug
from studies.rotation.grid import COMBINED, ESTIMATORS, REMEDIES, SETTINGS, overrides
from studies.rotation.mechanism import pushes
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import evaluation_batches, load_splits, to_model_range
from vqjax.training.build import build_task
from vqjax.training.config import load_config
from vqjax.training.loop import train

ROOT = Path(__file__).parents[2]
_EVALUATED = ("psnr", "ssim", "mse_over_variance", "perplexity_batch", "perplexity_split", "usage_split")
_LATE = ("relative_error", "angle", "norm_ratio", "perplexity")
_BATCHES = 40


def study_runs(settings: Sequence[str], seeds: int) -> list[Run]:
    """List the trainings: every estimator on every setting, and the grid of remedies on ``"sonnet"``.

    Args:
      settings: Keys of ``SETTINGS``.
      seeds: Trainings of each.

    Returns:
      The runs, one seed after another, so that an unfinished study compares all of them.
    """
    cells = [(setting, estimator, "none") for setting in settings for estimator in ESTIMATORS]
    if "sonnet" in settings:
        cells += [("sonnet", estimator, remedy) for remedy in REMEDIES if remedy != "none" for estimator in COMBINED]
    return [
        Run(
            f"{slug(setting)}/{estimator}--{slug(remedy)}--seed{seed}",
            {"setting": setting, "estimator": estimator, "remedy": remedy, "seed": seed, "steps": length(setting)},
        )
        for seed in range(seeds)
        for setting, estimator, remedy in cells
    ]


@functools.cache
def length(setting: str) -> int:
    """Return the number of steps of a setting."""
    return SETTINGS[setting].steps or load_config(_config(setting), []).num_steps


def _config(setting: str) -> str:
    return str(ROOT / SETTINGS[setting].config)


def config_of(run: Run) -> ConfigDict:
    """Return the config of a run.

    Args:
      run: A run of :func:`study_runs`.
    """
    changes = overrides(run.settings["estimator"], run.settings["remedy"])
    steps = run.settings["steps"]
    flags = [f"--config.num_steps={steps}", f"--config.seed={run.settings['seed']}", "--config.tensorboard=false"]
    # One evaluation and checkpoint at the end, and means over the last tenth.
    flags += [f"--config.eval_every={steps}", f"--config.checkpoint_every={max(1, steps // 4)}"]
    flags += [f"--config.log_every={max(1, steps // 10)}"]
    return load_config(_config(run.settings["setting"]), [*changes, *flags])


def make_runs(runs: Sequence[Run], results: Results, workdir: Path) -> None:
    """Train, evaluate and measure; an interrupted training is continued.

    Args:
      runs: Runs of :func:`study_runs`.
      results: Receives their records.
      workdir: Directory of the runs of the trainer; that of a finished one is removed.
    """
    began = time.monotonic()
    for number, run in enumerate(runs):
        left = f", {(time.monotonic() - began) / number * (len(runs) - number) / 3600:.1f} h left" if number else ""
        print(f"{run.name}: {number + 1} of {len(runs)}{left}", file=sys.stderr, flush=True)
        started = time.monotonic()
        directory = workdir / slug(run.name)
        measured = measure(config_of(run), directory)
        results.add(run, measured, time.monotonic() - started)
        shutil.rmtree(directory)


def measure(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Train with a config, and measure the result.

    Args:
      config: The config.
      directory: Directory of the run.

    Returns:
      Numbers of the evaluation, of the last tenth of the training, and of :func:`pushes`, by name.
    """
    try:
        result = train(config, directory)
    except FloatingPointError:
        return {"diverged": True}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    late = next(line for line in reversed(lines) if "train/loss" in line)
    measured = {"diverged": False} | {name: result.metrics[name] for name in _EVALUATED}
    measured |= {f"late_{name}": late.get(f"train/{name}") for name in _LATE}
    tokenizer, splits = load_tokenizer(directory), load_splits(config.data)
    batches = [
        to_model_range(jax.numpy.asarray(batch["image"]))
        for batch, _ in zip(evaluation_batches(splits.train, config.batch_size), range(_BATCHES), strict=False)
    ]
    weight = config.quantizer.get("commitment_weight", 0.25)
    loss = build_task(config, splits.train).loss
    return measured | pushes(tokenizer.model, tokenizer.variables, loss, batches, weight)
