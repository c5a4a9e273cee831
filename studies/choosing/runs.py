"""Runs of the study in docs/choosing-a-quantizer.md."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from studies.choosing import collapse, himmelblau
from studies.choosing.surfaces import DRAWS, GRID_SIDE, SURFACES, measure_field
from studies.choosing.variants import GROUPS, STARTS
from studies.common.records import Results, Run, slug
from studies.common.training import OnStep, Photographs, make_trainings
from vqjax.data.dataset import Splits
from vqjax.data.photos import photo_splits
from vqjax.estimators import ESTIMATORS
from vqjax.tasks.decoder_gradient import DECODER_GRADIENTS

PLANE_ESTIMATORS = ("exact", *ESTIMATORS, *(name for name in DECODER_GRADIENTS if name != "exact"))
"""Estimators of the experiments in the plane."""


def surface_runs() -> list[Run]:
    """List the gradient fields: one run per surface and estimator."""
    return [
        Run(
            f"surfaces/{slug(surface)}--{slug(name)}",
            {"surface": surface, "estimator": name, "grid_side": GRID_SIDE, "draws": DRAWS},
        )
        for surface in SURFACES
        for name in PLANE_ESTIMATORS
    ]


def himmelblau_runs(setting: himmelblau.Setting) -> list[Run]:
    """List the descents: one run per estimator, with all its seeds."""
    return [Run(f"himmelblau/{slug(name)}", {"estimator": name} | setting._asdict()) for name in PLANE_ESTIMATORS]


def collapse_runs(setting: collapse.Setting, seeds: int, chosen: Sequence[str] | None = None) -> list[Run]:
    """List the trainings.

    Args:
      setting: Settings that all runs have in common.
      seeds: Runs per variant and initial codes.
      chosen: Names of variants; all by default.

    Returns:
      One run per variant, initial codes and seed; those of one variant follow one another.
    """
    return [
        Run(
            f"collapse/{group}--{slug(name)}--{slug(start)}--seed{seed}",
            # A variant is known by its name: what that means in arguments of the library is in variants.py.
            {"group": group, "variant": name, "start": start, "seed": seed, "initial_scale": scale} | vars(setting),
        )
        for group, variants in GROUPS.items()
        for name in variants
        if chosen is None or name in chosen
        for start, scale in STARTS.items()
        for seed in range(seeds)
    ]


def make_fields(runs: Sequence[Run], results: Results) -> None:
    """Measure gradient fields.

    Args:
      runs: Runs of :func:`surface_runs`.
      results: Receives their records.
    """
    _execute(runs, results, lambda settings: measure_field(settings["estimator"], SURFACES[settings["surface"]]))


def make_descents(runs: Sequence[Run], results: Results, setting: himmelblau.Setting) -> None:
    """Descend on Himmelblau's function.

    Args:
      runs: Runs of :func:`himmelblau_runs`.
      results: Receives their records.
      setting: The setting of these runs.
    """
    _execute(runs, results, lambda settings: himmelblau.measure_descent(settings["estimator"], setting))


def make_collapses(
    runs: Sequence[Run],
    results: Results,
    setting: collapse.Setting,
    load_splits: Callable[[int], Splits] = photo_splits,
) -> None:
    """Train and evaluate the autoencoders.

    Args:
      runs: Runs of :func:`collapse_runs`.
      results: Receives their records.
      setting: The setting of these runs.
      load_splits: Gives the images for an image size.
    """

    def prepare(variant: tuple[str, str], photographs: Photographs) -> Callable[..., dict[str, Any]]:
        group, name = variant
        experiment = collapse.Experiment(GROUPS[group][name], setting, photographs)

        def train(settings: Mapping[str, Any], on_step: OnStep) -> dict[str, Any]:
            return experiment.run(settings["initial_scale"], settings["seed"], on_step)

        return train

    variant_of = lambda settings: (settings["group"], settings["variant"])  # noqa: E731
    make_trainings(runs, results, setting, variant_of=variant_of, prepare=prepare, load_splits=load_splits)


def _execute(runs: Sequence[Run], results: Results, measure: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Make runs of about a second each, with one line per run and the remaining time."""
    began = time.monotonic()
    for done, run in enumerate(runs):
        started = time.monotonic()
        remaining = tqdm.format_interval((started - began) / done * (len(runs) - done)) if done else "?"
        print(f"{done + 1}/{len(runs)}  ETA {remaining}  {run.name}", file=sys.stderr, flush=True)
        measured = measure(run.settings)
        results.add(run, measured, time.monotonic() - started)
