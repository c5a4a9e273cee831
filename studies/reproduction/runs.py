"""Every run of the reproduction of the CIFAR-10 study, by the table that shows it, and where its results are kept."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from studies.common.records import Record, Run, slug, unfinished, write_record
from studies.reproduction.codebook_layout import lay_out
from studies.reproduction.training import BATCH_SIZE, PICTURES, Scale, Snapshot, StudyImages, StudyTraining
from studies.reproduction.variants import ABLATION, ESTIMATORS, PROTOCOLS, VARIANTS
from vqjax.data import load_splits, materialize
from vqjax.reporting import Progress, save_png

SCALES = {
    "full": Scale(epochs=50, training_images=50_000, test_images=10_000, seeds=5),
    "five_epochs": Scale(epochs=5, training_images=50_000, test_images=10_000, seeds=1),
    "small": Scale(epochs=5, training_images=2_560, test_images=512, seeds=2),
}
"""How much of it, by name: the study's own, and what fits two CPU cores."""

NUM_CODES, COMMITMENT_WEIGHT = 1024, 0.25
SIZES = {"small": 256, "medium": 512, "large": 1024, "xlarge": 2048}
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0)


class Configuration(NamedTuple):
    """What all seeds of a row of a table have in common."""

    variant: str
    num_codes: int = NUM_CODES
    commitment_weight: float = COMMITMENT_WEIGHT


TABLES: dict[str, list[Configuration]] = {
    "betas": [Configuration(name, commitment_weight=beta) for beta in BETAS for name in PROTOCOLS],
    "sizes": [Configuration(name, num_codes=size) for size in SIZES.values() for name in PROTOCOLS],
    "estimators": [Configuration(name) for name in ("corrected", *ESTIMATORS)],
    "latents": [Configuration(name) for name in ABLATION],
}
"""The tables of the report by name; the study's Table 3 and Table 2 are the first two."""

PICTURED = tuple(Configuration(name) for name in PROTOCOLS)
"""What the figures show, with seed 0."""


def study_runs(results: Path, scale: Scale, tables: Iterable[str], betas: Sequence[float] = BETAS) -> list[Run]:
    """The runs of some tables, the first seed of all configurations first.

    Args:
      results: Directory of the records of this scale.
      scale: How much is run.
      tables: Keys of ``TABLES``.
      betas: Which commitment weights of the table "betas".

    Returns:
      Each run once, though several tables may show it.
    """
    chosen = dict.fromkeys(
        configuration
        for name in tables
        for configuration in TABLES[name]
        if name != "betas" or configuration.commitment_weight in betas
    )
    return [run_of(results, scale, configuration, seed) for seed in range(scale.seeds) for configuration in chosen]


def run_of(results: Path, scale: Scale, configuration: Configuration, seed: int) -> Run:
    """One run.

    Args:
      results: Directory of the records of this scale.
      scale: How much is run.
      configuration: What is trained.
      seed: Of parameters, codes and the order of images.

    Returns:
      Its settings, and where its record is.
    """
    settings = configuration._asdict() | {"seed": seed}
    settings |= {name: value for name, value in dataclasses.asdict(scale).items() if name != "seeds"}
    return Run(results / f"{_stem(configuration)}--seed{seed}.json", settings)


def configuration_of(settings: Mapping[str, Any]) -> Configuration:
    """The configuration of a run or record, by its settings."""
    return Configuration(*(settings[name] for name in Configuration._fields))


def snapshot_path(results: Path, configuration: Configuration, epoch: int) -> Path:
    """Where the picture of an epoch is; the codebook's layout is beside it, as JSON.

    Args:
      results: Directory of the records of this scale.
      configuration: One of ``PICTURED``.
      epoch: From 0.

    Returns:
      A path that ends in ``.png``.
    """
    return results / "snapshots" / f"{_stem(configuration)}--epoch{epoch}.png"


def identity_error(epochs: Sequence[dict[str, dict[str, float]]], commitment_weight: float) -> float:
    """How far the totals of a faithful run are from reconstruction + (1 + beta) codebook, at most.

    Args:
      epochs: Means under ``train`` and ``test``.
      commitment_weight: Beta.

    Returns:
      The largest difference; NaN where one of the numbers is.

    Example:
      >>> identity_error([{"test": {"loss": 2.0, "reconstruction_mse": 0.5, "codebook_loss": 1.0}}], 0.5)
      0.0
    """
    errors = [
        abs(means["loss"] - means["reconstruction_mse"] - (1 + commitment_weight) * means["codebook_loss"])
        for epoch in epochs
        for means in epoch.values()
    ]
    # Unlike Python's, NumPy's maximum does not lose a NaN.
    return float(np.max(errors))


def load_cifar10() -> StudyImages:
    """Reads CIFAR-10 into memory.

    Raises:
      UserError: It is not where tensorflow-datasets keeps it.
    """
    data = ConfigDict({"source": "tfds", "name": "cifar10", "image_size": 32})
    data.update({"train_split": "train", "eval_split": "test", "eval_fraction": 0.1})
    splits = load_splits(data)
    return StudyImages(materialize(splits.train)["image"], materialize(splits.eval)["image"])


def make_runs(
    runs: Sequence[Run], results: Path, scale: Scale, workdir: Path, load: Callable[[], StudyImages] = load_cifar10
) -> None:
    """Makes the runs that are not finished, with a progress line over all of them.

    Args:
      runs: Of :func:`study_runs`.
      results: Directory of the records of this scale.
      scale: How much is run.
      workdir: Where the states of interrupted runs are kept.
      load: Gives the images.
    """
    todo = unfinished(runs)
    if not todo:
        return
    images, steps = load(), scale.epochs * scale.steps_per_epoch
    print(f"{len(todo)} of {len(runs)} runs to do: {scale}; compiling the first", file=sys.stderr, flush=True)
    with Progress(len(todo) * steps, 0, BATCH_SIZE) as progress:
        for number, run in enumerate(todo):
            _make(run, results, scale, workdir, images, number * steps, progress)


def _make(
    run: Run, results: Path, scale: Scale, workdir: Path, images: StudyImages, steps_before: int, progress: Progress
) -> None:
    def show(step: int, metrics: dict[str, float]) -> None:
        progress.metrics({"loss": metrics["loss"], "perplexity": metrics["perplexity"]})
        progress.update(steps_before + step)

    settings = run.settings
    configuration = configuration_of(settings)
    training = StudyTraining(
        VARIANTS[configuration.variant], configuration.num_codes, configuration.commitment_weight, scale, images
    )
    on_snapshot = None
    if settings["seed"] == 0 and configuration in PICTURED:
        save_png(results / "snapshots" / "originals.png", _row(images.test[:PICTURES]))
        on_snapshot = lambda snapshot: _keep(snapshot, results, configuration)  # noqa: E731
    began = time.monotonic()
    measured = training.run(settings["seed"], workdir / run.path.stem, settings, show, on_snapshot)
    if configuration.variant == "faithful":
        # Here, because records are rounded.
        measured["identity_error"] = identity_error(measured["epochs"], configuration.commitment_weight)
    write_record(run.path, Record(settings, measured, time.monotonic() - began))
    shutil.rmtree(workdir / run.path.stem)
    tested = measured["epochs"][-1]["test"]
    progress.say(
        f"{run.path.stem}: total {tested['loss']:.4f}, reconstruction {tested['reconstruction_mse']:.5f}, "
        f"perplexity {tested['perplexity']:.1f}"
    )


def _keep(snapshot: Snapshot, results: Path, configuration: Configuration) -> None:
    path = snapshot_path(results, configuration, snapshot.epoch)
    save_png(path, _row(snapshot.reconstructions))
    lay_out(path.with_suffix(".json"), snapshot)


def _row(images: np.ndarray) -> np.ndarray:
    return np.concatenate(list(images), axis=1)


def _stem(configuration: Configuration) -> str:
    weight = f"beta{configuration.commitment_weight:g}".replace(".", "_")
    return f"{slug(configuration.variant)}--codes{configuration.num_codes}--{weight}"
