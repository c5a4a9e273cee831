"""Trainings of the study, and what is measured of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from studies.classification.grid import QUANTIZERS, setting_of
from studies.common.records import Run, slug
from studies.common.trainings import config_of, late_metrics
from vqjax.training.loop import train

_EVALUATED = ("top1", "top5", "cross_entropy")
_OF_PLACE = ("usage_split", "perplexity_split")
_LATE = ("accuracy", "commitment_loss", "relative_error", "perplexity", "usage")


def study_runs(models: Sequence[str], seeds: int, scale: str) -> list[Run]:
    """List the trainings.

    Args:
      models: Keys of ``MODELS``.
      seeds: Trainings of ResNet-18 with each quantizer; the other networks have one.
      scale: A key of ``SCALES``.

    Returns:
      The runs, one seed after another, so that an unfinished study compares all rows.
    """
    return [
        Run(
            f"{scale}/{model}--{slug(quantizer)}--seed{seed}",
            {
                "scale": scale,
                "model": model,
                "quantizer": quantizer,
                "seed": seed,
                "steps": setting_of(model, quantizer, scale).length,
            },
        )
        for seed in range(seeds)
        for model in models
        if seed == 0 or model == "resnet18"
        for quantizer in QUANTIZERS
    ]


def run_config(run: Run) -> ConfigDict:
    """Return the config of a run."""
    of = run.settings
    return config_of(setting_of(of["model"], of["quantizer"], of["scale"]), [], steps=of["steps"], seed=of["seed"])


def measure_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train a run, and return its accuracy, the use of its codes, and means over the last tenth of the training."""
    config = run_config(run)
    try:
        result = train(config, directory)
    except FloatingPointError:
        return {"diverged": True}
    measured = {"diverged": False} | {name: result.metrics[name] for name in _EVALUATED}
    for place in config.quantizer:
        measured |= {name: result.metrics[f"{name}_{place}"] for name in _OF_PLACE}
    return measured | late_metrics(directory, _LATE)
