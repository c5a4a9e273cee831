"""Runs of the reproduction of the CIFAR-10 study, by the table that shows them."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from studies.common.records import Results, Run, slug
from studies.reproduction.layout import Layout, lay_out
from studies.reproduction.training import BATCH_SIZE, PICTURES, Cifar10, Scale, Snapshot, Training
from studies.reproduction.variants import ABLATION, ESTIMATORS, PROTOCOLS, VARIANTS
from vqjax.data import load_splits, materialize
from vqjax.reporting import Progress, save_png

SCALES = {
    scale.name: scale
    for scale in (
        Scale("full", epochs=50, training_images=50_000, test_images=10_000, seeds=5),
        Scale("five_epochs", epochs=5, training_images=50_000, test_images=10_000, seeds=1),
        Scale("small", epochs=5, training_images=2_560, test_images=512, seeds=2),
    )
}
"""Sizes of the runs by name: that of the study, and two for two CPU cores."""

NUM_CODES, COMMITMENT_WEIGHT = 1024, 0.25
SIZES = {"small": 256, "medium": 512, "large": 1024, "xlarge": 2048}
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0)


class Configuration(NamedTuple):
    """Settings that all seeds of a row have in common."""

    variant: str
    num_codes: int = NUM_CODES
    commitment_weight: float = COMMITMENT_WEIGHT


TABLES: dict[str, list[Configuration]] = {
    "betas": [Configuration(name, commitment_weight=beta) for beta in BETAS for name in PROTOCOLS],
    "sizes": [Configuration(name, num_codes=size) for size in SIZES.values() for name in PROTOCOLS],
    "estimators": [Configuration(name) for name in ("corrected", *ESTIMATORS)],
    "latents": [Configuration(name) for name in ABLATION],
}
"""Tables of the report by name; the first two are Table 3 and Table 2 of the study."""

PICTURED = tuple(Configuration(name) for name in PROTOCOLS)
"""Configurations that the figures show, with seed 0."""


def table_runs(scale: Scale, tables: Iterable[str], betas: Sequence[float] = BETAS) -> list[Run]:
    """List the runs of tables, the first seed of all configurations first.

    Args:
      scale: Size of the runs.
      tables: Keys of ``TABLES``.
      betas: Commitment weights of the table "betas".

    Returns:
      Each run once, though several tables may show it.
    """
    chosen = dict.fromkeys(
        configuration
        for name in tables
        for configuration in TABLES[name]
        if name != "betas" or configuration.commitment_weight in betas
    )
    return [run_of(scale, configuration, seed) for seed in range(scale.seeds) for configuration in chosen]


def run_of(scale: Scale, configuration: Configuration, seed: int) -> Run:
    """Describe one run.

    Args:
      scale: Size of the run.
      configuration: Configuration to train.
      seed: Seed of parameters, codes and the order of images.

    Returns:
      Its name and settings.
    """
    settings = configuration._asdict() | {"seed": seed}
    settings |= {name: getattr(scale, name) for name in ("epochs", "training_images", "test_images")}
    return Run(f"{scale.name}/{_stem(configuration)}--seed{seed}", settings)


def configuration_of(settings: Mapping[str, Any]) -> Configuration:
    """Read the configuration from the settings of a run."""
    return Configuration(*(settings[name] for name in Configuration._fields))


def snapshot_path(records: Path, scale: Scale, configuration: Configuration | None, epoch: int = 0) -> Path:
    """Return the path of the reconstructions after an epoch.

    Args:
      records: Directory of the records.
      scale: Size of the run.
      configuration: One of ``PICTURED``, or None for the original images.
      epoch: Epoch, from 0.

    Returns:
      A path that ends in ``.png``.
    """
    name = "originals" if configuration is None else f"{_stem(configuration)}--epoch{epoch}"
    return records / "snapshots" / scale.name / f"{name}.png"


def identity_error(epochs: Sequence[dict[str, dict[str, float]]], commitment_weight: float) -> float:
    """Compare the totals of a faithful run with reconstruction + (1 + beta) codebook.

    Args:
      epochs: Means under ``train`` and ``test``.
      commitment_weight: Beta.

    Returns:
      The largest difference; NaN if one of the numbers is NaN.

    Example:
      >>> identity_error([{"test": {"loss": 2.0, "reconstruction_mse": 0.5, "codebook_loss": 1.0}}], 0.5)
      0.0
    """
    errors = [
        abs(means["loss"] - means["reconstruction_mse"] - (1 + commitment_weight) * means["codebook_loss"])
        for epoch in epochs
        for split, means in epoch.items()
        if split in ("train", "test")
    ]
    # NumPy's maximum keeps a NaN, unlike Python's.
    return float(np.max(errors))


def load_cifar10() -> Cifar10:
    """Read CIFAR-10 into memory.

    Returns:
      The images.

    Raises:
      UserError: tensorflow-datasets does not find CIFAR-10.
    """
    data = ConfigDict({"source": "tfds", "name": "cifar10", "image_size": 32})
    data.update({"train_split": "train", "eval_split": "test", "eval_fraction": 0.1})
    splits = load_splits(data)
    return Cifar10(materialize(splits.train)["image"], materialize(splits.eval)["image"])


def make_runs(
    runs: Sequence[Run], records: Path, scale: Scale, workdir: Path, load: Callable[[], Cifar10] = load_cifar10
) -> None:
    """Make the runs that are not finished, with one progress line for all of them.

    Args:
      runs: Runs of :func:`table_runs`.
      records: Directory of the records, which receives ``results.jsonl`` and ``snapshots``.
      scale: Size of the runs.
      workdir: Directory of the states of interrupted runs.
      load: Gives the images.
    """
    results = Results(records / "results.jsonl")
    unfinished = results.unfinished(runs)
    if not unfinished:
        return
    images, steps = load(), scale.epochs * scale.steps_per_epoch
    print(f"{len(unfinished)} of {len(runs)} runs to do: {scale}; compiling the first", file=sys.stderr, flush=True)
    with Progress(len(unfinished) * steps, 0, BATCH_SIZE) as progress:
        for number, run in enumerate(unfinished):

            def show(step: int, metrics: Mapping[str, float], steps_before: int = number * steps) -> None:
                progress.metrics({"loss": metrics["loss"], "perplexity": metrics["perplexity"]})
                progress.update(steps_before + step)

            began = time.monotonic()
            of_run = workdir / run.name.partition("/")[2]
            measured = _train(run, records, scale, of_run, images, show)
            results.add(run, measured, time.monotonic() - began)
            shutil.rmtree(of_run)
            tested = measured["epochs"][-1]["test"]
            progress.say(
                f"{run.name}: total {tested['loss']:.4f}, reconstruction {tested['reconstruction_mse']:.5f}, "
                f"perplexity {tested['perplexity']:.1f}"
            )


def _train(
    run: Run, records: Path, scale: Scale, workdir: Path, images: Cifar10, on_step: Callable[..., None]
) -> dict[str, Any]:
    configuration, seed = configuration_of(run.settings), run.settings["seed"]
    training = Training(
        VARIANTS[configuration.variant], configuration.num_codes, configuration.commitment_weight, scale, images
    )

    def keep(snapshot: Snapshot) -> Layout:
        save_png(snapshot_path(records, scale, configuration, snapshot.epoch), _row(snapshot.reconstructions))
        return lay_out(snapshot.codes, snapshot.earlier_layout)

    is_pictured = seed == 0 and configuration in PICTURED
    if is_pictured:
        save_png(snapshot_path(records, scale, None), _row(images.test[:PICTURES]))
    measured = training.run(seed, workdir, run.settings, on_step, keep if is_pictured else None)
    if configuration.variant == "faithful":
        # Computed before the record is rounded.
        measured["identity_error"] = identity_error(measured["epochs"], configuration.commitment_weight)
    return measured


def _row(images: np.ndarray) -> np.ndarray:
    return np.concatenate(list(images), axis=1)


def _stem(configuration: Configuration) -> str:
    weight = f"beta{configuration.commitment_weight:g}".replace(".", "_")
    return f"{slug(configuration.variant)}--codes{configuration.num_codes}--{weight}"
