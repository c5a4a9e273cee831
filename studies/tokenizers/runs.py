"""Runs of the study, and what is measured of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from studies.common.records import Run
from studies.common.trainings import config_of, train_and_evaluate
from studies.features.distance import FeatureDistance
from studies.tokenizers.grid import DISCRIMINATED, ESTIMATORS, SETTINGS, overrides
from studies.tokenizers.spectrum import LogSpectralDistance

# Those of the discriminator by the names of taming-transformers.
_LATE = ("loss", "relative_error", "quantization_error", "norm_ratio", "angle", "rms_latents", "perplexity")
_LATE += ("g_loss", "d_weight", "disc_loss", "disc_accuracy", "logits_real", "logits_fake")

STAGES = ("estimators", "discriminator")


def study_runs(stages: Sequence[str], settings: Sequence[str], seeds: int) -> list[Run]:
    """List the trainings.

    Args:
      stages: ``"estimators"``: all of them on every setting; ``"discriminator"``: one config without and with its
        discriminator.
      settings: Keys of ``SETTINGS``.
      seeds: Trainings of each.

    Returns:
      The runs, one seed after another, so that an unfinished study compares all of them.
    """
    runs = []
    for seed in range(seeds):
        if "discriminator" in stages:
            runs += [
                Run(f"discriminator/{arm}--seed{seed}", {"arm": arm, "seed": seed, "steps": setting.length})
                for arm, setting in DISCRIMINATED.items()
            ]
        if "estimators" in stages:
            runs += [
                Run(
                    f"{setting}/{estimator}--seed{seed}",
                    {"setting": setting, "estimator": estimator, "seed": seed, "steps": SETTINGS[setting].length},
                )
                for setting in settings
                for estimator in ESTIMATORS
            ]
    return runs


def run_config(run: Run) -> ConfigDict:
    """Return the config of a run."""
    length = {"steps": run.settings["steps"], "seed": run.settings["seed"]}
    if "arm" in run.settings:
        return config_of(DISCRIMINATED[run.settings["arm"]], [], **length)
    setting, estimator = run.settings["setting"], run.settings["estimator"]
    return config_of(SETTINGS[setting], overrides(setting, estimator), **length)


def measure_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train a run, and return the numbers of :func:`studies.common.trainings.train_and_evaluate`."""
    metrics = [FeatureDistance.of("imagenette"), LogSpectralDistance()]
    return train_and_evaluate(run_config(run), directory, metrics=metrics, late=_LATE).measured
