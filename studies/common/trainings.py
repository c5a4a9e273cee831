"""Runs of a study that are runs of the trainer: a config with changes, trained as users train, several at once."""

import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from studies.common.records import Results, Run, slug
from studies.common.workers import worker_pool
from vqjax.checkpointing.checkpoints import Tokenizer, load_tokenizer
from vqjax.data import Batch, Splits, evaluation_batches, load_splits, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.evaluation.metric import Metric, Outputs
from vqjax.training.config import load_config
from vqjax.training.loop import train

ROOT = Path(__file__).parents[2]
_EVALUATED = ("psnr", "psnr_gain", "ssim", "mse_over_variance", "perplexity_batch", "perplexity_split", "usage_split")

Measure = Callable[[Run, Path], dict[str, Any]]
"""Trains a run in a directory of its own, and returns what was measured."""


class Setting(NamedTuple):
    """A config, and how it is trained.

    Attributes:
      config: Config file with its arguments.
      steps: Length of the training; None for that of the config.
      changes: Changes of the config.
    """

    config: str
    steps: int | None = None
    changes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.steps or _steps_of(self.config)


@functools.cache
def _steps_of(config: str) -> int:
    return load_config(str(ROOT / config), []).num_steps


def config_of(setting: Setting, changes: Sequence[str], *, steps: int, seed: int) -> ConfigDict:
    """Return the config of a training.

    Args:
      setting: Its setting.
      changes: Further changes, as ``group.field=value``.
      steps: Number of steps.
      seed: Seed of the run.
    """
    # One evaluation and checkpoint at the end, and means over the last tenth.
    frame = {"num_steps": steps, "seed": seed, "tensorboard": False, "eval_every": steps}
    frame |= {"checkpoint_every": max(1, steps // 4), "log_every": max(1, steps // 10)}
    every = [*setting.changes, *changes, *(f"{name}={value}" for name, value in frame.items())]
    return load_config(str(ROOT / setting.config), [f"--config.{change}" for change in every])


class Trained(NamedTuple):
    """A training, its evaluation, and what it can be measured further with.

    Attributes:
      measured: Numbers of the evaluation, and of the last tenth of the training, with ``late_`` before them;
        ``diverged`` alone after divergence.
      tokenizer: The trained model; None after divergence.
      splits: The images.
    """

    measured: dict[str, Any]
    tokenizer: Tokenizer | None
    splits: Splits


def train_and_evaluate(
    config: ConfigDict, directory: Path, *, metrics: Sequence[Metric], late: Sequence[str]
) -> Trained:
    """Train with a config, and evaluate the result.

    Args:
      config: The config.
      directory: Directory of the run.
      metrics: Metrics of reconstructions, beside those of the trainer.
      late: Metrics of training steps to keep.
    """
    splits = load_splits(config.data)
    try:
        result = train(config, directory)
    except FloatingPointError:
        return Trained({"diverged": True}, None, splits)
    measured = {"diverged": False} | {name: result.metrics[name] for name in _EVALUATED} | late_metrics(directory, late)
    tokenizer = load_tokenizer(directory)

    def reconstruct(variables: Any, batch: Batch) -> Outputs:
        output = tokenizer.model.apply(variables, to_model_range(pixels_of(batch)), train=False)
        return {"reconstruction": output.reconstruction}

    of_variables = jax.tree_util.Partial(reconstruct, tokenizer.variables)
    held_out = evaluation_batches(splits.eval, config.batch_size)
    measured |= evaluate(of_variables, held_out, metrics).metrics
    return Trained(measured, tokenizer, splits)


def late_metrics(directory: Path, names: Sequence[str]) -> dict[str, float | None]:
    """Return metrics of the last log line of a training, each with ``late_`` before its name.

    Args:
      directory: Directory of the run.
      names: Metrics of training steps; None stands for one that is not in the log.
    """
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/loss" in line)
    return {f"late_{name}": last.get(f"train/{name}") for name in names}


def make_runs(runs: Sequence[Run], results: Results, workdir: Path, measure: Measure, jobs: int = 1) -> None:
    """Train, evaluate and measure; an interrupted training is continued.

    Args:
      runs: The runs.
      results: Receives their records.
      workdir: Directory of the runs of the trainer; that of a finished one is removed.
      measure: What trains one; a function of a module, if there are several jobs.
      jobs: Trainings at once. Several have a process each, and do not show their progress.

    Raises:
      UserError: Trainings of several at once failed; the others are finished and recorded.
    """
    began, failures = time.monotonic(), 0
    for number, (run, outcome) in enumerate(_outcomes(runs, workdir, measure, jobs), start=1):
        try:
            measured, seconds = outcome()
        except Exception as error:
            if jobs == 1:
                raise
            failures += 1
            print(f"{run.name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        results.add(run, measured, seconds)
        shutil.rmtree(run_directory(run, workdir))
        left = (time.monotonic() - began) / number * (len(runs) - number) / 3600
        print(f"{run.name}: {number} of {len(runs)} done, {left:.1f} h left", file=sys.stderr, flush=True)
    if failures:
        raise UserError(f"{failures} of {len(runs)} trainings failed; the same command tries them again.")


def _outcomes(
    runs: Sequence[Run], workdir: Path, measure: Measure, jobs: int
) -> Iterator[tuple[Run, Callable[[], tuple[dict[str, Any], float]]]]:
    """Each run, and what returns its measurements and seconds, as they are finished."""
    if jobs == 1:
        for run in runs:
            print(f"{run.name}", file=sys.stderr, flush=True)
            yield run, functools.partial(_timed, measure, run, workdir)
        return
    # Pools of one process each: one that dies fails its own training alone.
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(jobs):
        idle.put(worker_pool(1, _silence))

    def in_a_process(run: Run) -> tuple[dict[str, Any], float]:
        pool = idle.get()
        try:
            return pool.submit(_timed, measure, run, workdir).result()
        except BrokenProcessPool:
            pool.shutdown()
            pool = worker_pool(1, _silence)
            raise
        finally:
            idle.put(pool)

    with ThreadPoolExecutor(jobs) as threads:
        futures = {threads.submit(in_a_process, run): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result
        finally:
            threads.shutdown(cancel_futures=True)
            while not idle.empty():
                idle.get().shutdown()


def _silence() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)


def run_directory(run: Run, workdir: Path) -> Path:
    """Return the directory of a run within that of the study."""
    return workdir / slug(run.name)


def _timed(measure: Measure, run: Run, workdir: Path) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    return measure(run, run_directory(run, workdir)), time.monotonic() - started
