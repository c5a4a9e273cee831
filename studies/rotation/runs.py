"""Trainings of the study, and what is measured of each."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from studies.common.records import Run, slug
from studies.common.trainings import config_of, train_and_evaluate
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
from vqjax.data import evaluation_batches, to_model_range
from vqjax.training.build import build_task

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
            {
                "setting": setting,
                "estimator": estimator,
                "remedy": remedy,
                "seed": seed,
                "steps": SETTINGS[setting].length,
            },
        )
        for setting, estimator, remedy, seed in seen
    ]


@known_candidates()
def run_config(run: Run) -> ConfigDict:
    """Return the config of a run.

    Args:
      run: A run of :func:`study_runs`.
    """
    changes = overrides(run.settings["estimator"], run.settings["remedy"])
    return config_of(SETTINGS[run.settings["setting"]], changes, steps=run.settings["steps"], seed=run.settings["seed"])


def measure_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train a run, and measure the result; see :func:`measure`."""
    return measure(run_config(run), directory)


@known_candidates()
def measure(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Train with a config, and measure the result.

    Args:
      config: The config.
      directory: Directory of the run.

    Returns:
      Numbers of :func:`studies.common.trainings.train_and_evaluate` and of :func:`pushes`, by name.
    """
    trained = train_and_evaluate(config, directory, metrics=[FeatureDistance.of("cifar10")], late=_LATE)
    if trained.tokenizer is None:
        return trained.measured
    batches = [
        to_model_range(jnp.asarray(batch["image"]))
        for batch, _ in zip(evaluation_batches(trained.splits.train, config.batch_size), range(_BATCHES), strict=False)
    ]
    loss = build_task(config, trained.splits.train).loss
    return trained.measured | pushes(trained.tokenizer.model, trained.tokenizer.variables, loss, batches)
