"""Runs of the study: each is a run of the trainer in a directory of its own."""

import functools
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from studies.common.records import Results, Run, slug
from studies.features.distance import FeatureDistance
from studies.rotation.candidates import known_candidates
from studies.rotation.grid import (
    COMBINED,
    CONFIRMED_WITH,
    ESTIMATORS,
    FINALISTS,
    FRESH,
    REMEDIES,
    SETTINGS,
    overrides,
)
from studies.rotation.mechanism import pushes
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import Batch, evaluation_batches, load_splits, to_model_range
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.evaluation.metric import Outputs
from vqjax.training.build import build_task
from vqjax.training.config import load_config
from vqjax.training.loop import train

ROOT = Path(__file__).parents[2]
_EVALUATED = ("psnr", "ssim", "mse_over_variance", "perplexity_batch", "perplexity_split", "usage_split")
_LATE = ("relative_error", "angle", "norm_ratio", "perplexity")
_BATCHES = 40


STAGES = ("estimators", "remedies", "confirmation")


def study_runs(stages: Sequence[str], settings: Sequence[str], seeds: int) -> list[Run]:
    """List the trainings.

    Args:
      stages: ``"estimators"``: all of them in every setting; ``"remedies"``: five of them with every remedy, in
        ``"sonnet"``; ``"confirmation"``: the finalists in every setting, with seeds that no choice has seen.
      settings: Keys of ``SETTINGS``.
      seeds: Trainings of each.

    Returns:
      The runs, one seed after another, so that an unfinished study compares all of them; the confirmation without
      remedies comes before that with one.
    """
    cells, fresh = [], []
    if "estimators" in stages:
        cells += [(setting, estimator, "none") for setting in settings for estimator in ESTIMATORS]
    if "remedies" in stages and "sonnet" in settings:
        cells += [("sonnet", estimator, remedy) for remedy in REMEDIES for estimator in COMBINED]
    if "confirmation" in stages:
        of_seeds = range(FRESH, FRESH + seeds)
        fresh = [
            (setting, estimator, remedy, seed)
            for remedy, seed, setting, estimator in itertools.product(CONFIRMED_WITH, of_seeds, settings, FINALISTS)
        ]
    seen = [(*cell, seed) for seed in range(seeds) for cell in dict.fromkeys(cells)] + fresh
    return [
        Run(
            f"{slug(setting)}/{estimator}--{slug(remedy)}--seed{seed}",
            {"setting": setting, "estimator": estimator, "remedy": remedy, "seed": seed, "steps": length(setting)},
        )
        for setting, estimator, remedy, seed in seen
    ]


@functools.cache
def length(setting: str) -> int:
    """Return the number of steps of a setting."""
    return SETTINGS[setting].steps or load_config(_config(setting), []).num_steps


def _config(setting: str) -> str:
    return str(ROOT / SETTINGS[setting].config)


@known_candidates()
def config_of(run: Run) -> ConfigDict:
    """Return the config of a run.

    Args:
      run: A run of :func:`study_runs`.
    """
    changes = [f"--config.{change}" for change in SETTINGS[run.settings["setting"]].changes]
    changes += overrides(run.settings["estimator"], run.settings["remedy"])
    steps = run.settings["steps"]
    flags = [f"--config.num_steps={steps}", f"--config.seed={run.settings['seed']}", "--config.tensorboard=false"]
    # One evaluation and checkpoint at the end, and means over the last tenth.
    flags += [f"--config.eval_every={steps}", f"--config.checkpoint_every={max(1, steps // 4)}"]
    flags += [f"--config.log_every={max(1, steps // 10)}"]
    return load_config(_config(run.settings["setting"]), [*changes, *flags])


def make_runs(runs: Sequence[Run], results: Results, workdir: Path, jobs: int = 1) -> None:
    """Train, evaluate and measure; an interrupted training is continued.

    Args:
      runs: Runs of :func:`study_runs`.
      results: Receives their records.
      workdir: Directory of the runs of the trainer; that of a finished one is removed.
      jobs: Trainings at once. Several have a process each, and do not show their progress.

    Raises:
      UserError: Trainings of several at once failed; the others are finished and recorded.
    """
    began, failures = time.monotonic(), 0
    for number, (run, outcome) in enumerate(_outcomes(runs, workdir, jobs), start=1):
        try:
            measured, seconds = outcome()
        except Exception as error:
            if jobs == 1:
                raise
            failures += 1
            print(f"{run.name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        results.add(run, measured, seconds)
        shutil.rmtree(_directory(run, workdir))
        left = (time.monotonic() - began) / number * (len(runs) - number) / 3600
        print(f"{run.name}: {number} of {len(runs)} done, {left:.1f} h left", file=sys.stderr, flush=True)
    if failures:
        raise UserError(f"{failures} of {len(runs)} trainings failed; the same command tries them again.")


def _outcomes(
    runs: Sequence[Run], workdir: Path, jobs: int
) -> Iterator[tuple[Run, Callable[[], tuple[dict[str, Any], float]]]]:
    """Each run, and what returns its measurements and seconds, as they are finished."""
    if jobs == 1:
        for run in runs:
            print(f"{run.name}", file=sys.stderr, flush=True)
            yield run, functools.partial(_measure_run, run, workdir)
        return
    # A process with threads, as JAX has them, cannot be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_silence) as pool:
        futures = {pool.submit(_measure_run, run, workdir): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _silence() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)


def _directory(run: Run, workdir: Path) -> Path:
    return workdir / slug(run.name)


def _measure_run(run: Run, workdir: Path) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    return measure(config_of(run), _directory(run, workdir)), time.monotonic() - started


@known_candidates()
def measure(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Train with a config, and measure the result.

    Args:
      config: The config.
      directory: Directory of the run.

    Returns:
      Numbers of the evaluation, ``feature_distance`` included, of the last tenth of the training, and of
      :func:`pushes`, by name.
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

    def reconstruct(variables: Any, batch: Batch) -> Outputs:
        output = tokenizer.model.apply(variables, to_model_range(batch["image"]), train=False)
        return {"reconstruction": output.reconstruction}

    of_variables = jax.tree_util.Partial(reconstruct, tokenizer.variables)
    held_out = evaluation_batches(splits.eval, config.batch_size)
    measured |= evaluate(of_variables, held_out, [FeatureDistance.of("cifar10")]).metrics
    batches = [
        to_model_range(jax.numpy.asarray(batch["image"]))
        for batch, _ in zip(evaluation_batches(splits.train, config.batch_size), range(_BATCHES), strict=False)
    ]
    loss = build_task(config, splits.train).loss
    return measured | pushes(tokenizer.model, tokenizer.variables, loss, batches)
