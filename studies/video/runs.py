"""Runs of the study, and what is measured of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from studies.common.records import Run
from studies.common.trainings import config_of, train_and_evaluate
from studies.video.grid import SETTINGS
from vqjax.evaluation.clips import OverTime

_LATE = ("loss", "reconstruction_mse", "relative_error", "quantization_error", "rms_latents", "perplexity", "usage")


def study_runs(settings: Sequence[str], estimators: Sequence[str], seeds: int) -> list[Run]:
    """List the trainings, one seed after another, so that an unfinished study compares all of them.

    Args:
      settings: Keys of ``SETTINGS``.
      estimators: Names of estimators.
      seeds: Trainings of each.
    """
    return [
        Run(
            f"{setting}/{estimator}--seed{seed}",
            {"setting": setting, "estimator": estimator, "seed": seed, "steps": SETTINGS[setting].length},
        )
        for seed in range(seeds)
        for setting in settings
        for estimator in estimators
    ]


def run_config(run: Run) -> ConfigDict:
    """Return the config of a run."""
    of = run.settings
    changes = [f"quantizer.estimator={of['estimator']}"]
    return config_of(SETTINGS[of["setting"]], changes, steps=of["steps"], seed=of["seed"])


def measure_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train a run, and return the numbers of :func:`studies.common.trainings.train_and_evaluate`."""
    return train_and_evaluate(run_config(run), directory, metrics=[OverTime()], late=_LATE).measured
