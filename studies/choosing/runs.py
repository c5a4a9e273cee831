"""Every run of the study that docs/choosing-a-quantizer.md reports, and where its results are kept."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from studies.choosing import collapse, himmelblau
from studies.choosing.collapse import Experiment
from studies.choosing.surfaces import DRAWS, GRID_SIDE, SURFACES, measure_field
from studies.choosing.variants import GROUPS, STARTS
from studies.common.photograph_training import Photographs, load_photographs
from studies.common.records import Record, Run, describe, slug, write_record
from vqjax.data.photos import photo_splits
from vqjax.estimators import ESTIMATORS
from vqjax.reporting import Progress
from vqjax.tasks.encoder_gradient import ENCODER_GRADIENTS

PLANE_ESTIMATORS = ("exact", *ESTIMATORS, *(name for name in ENCODER_GRADIENTS if name != "exact"))
"""What the experiments in the plane compare."""


def surface_runs(results: Path) -> list[Run]:
    """The gradient fields.

    Args:
      results: Directory of all records.

    Returns:
      One run per surface and estimator.
    """
    return [
        Run(
            results / "surfaces" / f"{slug(surface)}--{slug(name)}.json",
            {"surface": surface, "estimator": name, "grid_side": GRID_SIDE, "draws": DRAWS},
        )
        for surface in SURFACES
        for name in PLANE_ESTIMATORS
    ]


def himmelblau_runs(results: Path, setting: himmelblau.Setting) -> list[Run]:
    """The descents, all seeds of an estimator in one run.

    Args:
      results: Directory of all records.
      setting: What is run.

    Returns:
      One run per estimator.
    """
    return [
        Run(results / "himmelblau" / f"{slug(name)}.json", {"estimator": name} | setting._asdict())
        for name in PLANE_ESTIMATORS
    ]


def collapse_runs(
    results: Path, setting: collapse.Setting, seeds: int, chosen: Sequence[str] | None = None
) -> list[Run]:
    """The trainings.

    Args:
      results: Directory of all records.
      setting: What all have in common.
      seeds: Runs per variant and start.
      chosen: Names of variants; all by default.

    Returns:
      One run per variant, start and seed; those of one variant follow one another.
    """
    return [
        Run(
            results / "collapse" / f"{group}--{slug(name)}--{slug(start)}--seed{seed}.json",
            {
                "group": group,
                "variant": name,
                "start": start,
                "seed": seed,
                "initial_scale": STARTS[start].scale,
                "quantizer": describe(variant.quantizer),
                "encoder_gradient": variant.encoder_gradient,
                "kmeans_start": variant.kmeans_start,
            }
            | vars(setting),
        )
        for group, variants in GROUPS.items()
        for name, variant in variants.items()
        if chosen is None or name in chosen
        for start in STARTS
        for seed in range(seeds)
    ]


def make_fields(runs: Sequence[Run]) -> None:
    """Measures gradient fields.

    Args:
      runs: Of :func:`surface_runs`.
    """
    _execute("surfaces", runs, lambda run: measure_field(run.settings["estimator"], SURFACES[run.settings["surface"]]))


def make_descents(runs: Sequence[Run], setting: himmelblau.Setting) -> None:
    """Descends on Himmelblau's function.

    Args:
      runs: Of :func:`himmelblau_runs`.
      setting: What is run.
    """
    _execute("himmelblau", runs, lambda run: himmelblau.measure_descent(run.settings["estimator"], setting))


def make_trainings(
    runs: Sequence[Run], setting: collapse.Setting, load_splits: Callable[[int], Any] = photo_splits
) -> None:
    """Trains and evaluates the autoencoders, with a progress line over all of them.

    Args:
      runs: Of :func:`collapse_runs`.
      setting: What they have in common.
      load_splits: Where the images come from, by their size.
    """
    if not runs:
        return
    print(f"collapse: {len(runs)} runs of {setting.steps} steps; compiling the first", file=sys.stderr, flush=True)
    photographs = load_photographs(load_splits, setting.image_size)
    experiment, compiled = None, None
    with Progress(len(runs) * setting.steps, 0, setting.batch_size) as progress:
        for number, run in enumerate(runs):
            name = (run.settings["group"], run.settings["variant"])
            if name != compiled:
                experiment, compiled = _experiment(*name, setting, photographs), name
            _train(experiment, run, number * setting.steps, progress)
            progress.update((number + 1) * setting.steps)


def _experiment(group: str, variant: str, setting: collapse.Setting, photographs: Photographs) -> Experiment:
    return Experiment(GROUPS[group][variant], setting, photographs)


def _train(experiment: Experiment, run: Run, steps_before: int, progress: Progress) -> None:
    def show(step: int, metrics: dict[str, Any]) -> None:
        progress.metrics({name: metrics[name] for name in ("loss", "psnr", "perplexity")})
        progress.update(steps_before + step)

    began = time.monotonic()
    measured = experiment.run(STARTS[run.settings["start"]], run.settings["seed"], show)
    write_record(run.path, Record(run.settings, measured, time.monotonic() - began))
    progress.say(f"{run.path.stem}: {_headline(measured)}")


def _headline(measured: dict[str, Any]) -> str:
    if measured["diverged"]:
        return "diverged"
    return f"held-out PSNR {measured['psnr']:.2f} dB, {measured['codes_used']} codes used"


def _execute(title: str, runs: Sequence[Run], measure: Callable[[Run], dict[str, Any]]) -> None:
    """Runs that take a second or so each: one line per run, and the time that the others will take."""
    began = time.monotonic()
    for done, run in enumerate(runs):
        left = (
            f"ETA {tqdm.format_interval((time.monotonic() - began) / done * (len(runs) - done))}" if done else "ETA ?"
        )
        print(f"{title} {done + 1}/{len(runs)}  {left}  {run.path.stem}", file=sys.stderr, flush=True)
        started = time.monotonic()
        measured = measure(run)
        write_record(run.path, Record(run.settings, measured, time.monotonic() - started))
