"""Every quantizer in the same small autoencoder on photographs: what it reconstructs, and what it costs."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from studies.common.photograph_training import PhotographTraining, TrainingSetting, load_photographs
from studies.common.records import Record, Run, write_record
from vqjax.data.photos import photo_splits
from vqjax.models import VQVAE
from vqjax.models.registry import build_model
from vqjax.quantizers.registry import FAMILIES
from vqjax.reporting import Progress
from vqjax.training.config import default_config
from vqjax.training.quantizer_presets import use_preset

_KEPT = ("psnr", "psnr_gain", "usage_split", "perplexity_split", "bits_per_image", "entropy_bits_per_image")
_TIMED_MAPS = 64
_REPETITIONS = 21


def family_runs(results: Path, setting: TrainingSetting, seeds: int, chosen: Sequence[str] | None = None) -> list[Run]:
    """The trainings.

    Args:
      results: Directory of the records.
      setting: What all have in common.
      seeds: Runs per quantizer.
      chosen: Names of quantizers; all by default.

    Returns:
      One run per quantizer and seed; those of one quantizer follow one another.
    """
    return [
        Run(
            results / f"{name}--seed{seed}.json",
            {"quantizer": _options(name, setting), "seed": seed} | vars(setting),
        )
        for name in chosen or FAMILIES
        for seed in range(seeds)
    ]


def family_model(name: str, setting: TrainingSetting) -> VQVAE:
    """The autoencoder with a quantizer's preset.

    Args:
      name: Of the quantizer.
      setting: Gives the sizes.

    Returns:
      The module, without variables.

    Example:
      >>> family_model("fsq", TrainingSetting()).quantizer.num_codes
      240
    """
    config = _config(name, setting)
    return build_model(config.model, config.quantizer)


def make_trainings(
    runs: Sequence[Run], setting: TrainingSetting, load_splits: Callable[[int], Any] = photo_splits
) -> None:
    """Trains, evaluates and times, with a progress line over all runs.

    Args:
      runs: Of :func:`family_runs`.
      setting: What they have in common.
      load_splits: Where the images come from, by their size.
    """
    if not runs:
        return
    print(f"quantizers: {len(runs)} runs of {setting.steps} steps; compiling the first", file=sys.stderr, flush=True)
    photographs = load_photographs(load_splits, setting.image_size)
    training, compiled, cost = None, None, None
    with Progress(len(runs) * setting.steps, 0, setting.batch_size) as progress:
        for number, run in enumerate(runs):
            name = run.settings["quantizer"]["name"]
            if name != compiled:
                model = family_model(name, setting)
                training, compiled = PhotographTraining(model, setting, photographs), name
                cost = microseconds_per_vector(model, setting)
            began = time.monotonic()
            measured = _train(training, run.settings["seed"], setting, number * setting.steps, progress)
            measured["microseconds_per_vector"] = cost
            write_record(run.path, Record(run.settings, measured, time.monotonic() - began))
            progress.say(f"{run.path.stem}: held-out PSNR {measured['psnr'] or float('nan'):.2f} dB")
            progress.update((number + 1) * setting.steps)


def microseconds_per_vector(model: VQVAE, setting: TrainingSetting) -> float:
    """Time of a quantizer's training step alone: forward, gradients to input and parameters, update of its state.

    Args:
      model: Holds the quantizer.
      setting: Gives the shape of the latent maps.

    Returns:
      Median over repetitions, per latent vector.
    """
    side = setting.image_size // 4
    z = jax.random.normal(jax.random.key(0), (_TIMED_MAPS, side, side, model.encoder.code_dim))
    quantizer = model.quantizer.clone(parent=None, name=None)
    variables = quantizer.init({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, z)
    params = variables.pop("params", {})

    @jax.jit
    def step(params: Any, collections: Any, z: Array) -> Any:
        def loss(params: Any, z: Array) -> tuple[Array, Any]:
            output, updated = quantizer.apply(
                {"params": params} | collections,
                z,
                train=True,
                mutable=list(collections),
                rngs={"quantizer": jax.random.key(3)},
            )
            return output.loss + output.quantized.sum(), (updated, output.indices)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)

    seconds = []
    for _ in range(_REPETITIONS + 1):
        began = time.perf_counter()
        jax.block_until_ready(step(params, variables, z))
        seconds.append(time.perf_counter() - began)
    # The first one compiles.
    return float(np.median(seconds[1:])) * 1e6 / (_TIMED_MAPS * side * side)


def _train(
    training: PhotographTraining, seed: int, setting: TrainingSetting, steps_before: int, progress: Progress
) -> dict[str, Any]:
    moments: list[tuple[int, float]] = []

    def show(step: int, metrics: dict[str, Any]) -> None:
        moments.append((step, time.monotonic()))
        progress.metrics({name: metrics[name] for name in ("loss", "psnr", "perplexity")})
        progress.update(steps_before + step)

    outcome = training.run(training.start(seed), seed, show)
    if outcome.diverged:
        return {"diverged": True} | dict.fromkeys((*_KEPT, "images_per_second"))
    # From the first look on, so without compilation.
    steps, seconds = (last - first for first, last in zip(moments[0], moments[-1], strict=True))
    speed = steps * setting.batch_size / seconds if steps else None
    return {"diverged": False, "images_per_second": speed} | {name: outcome.heldout[name] for name in _KEPT}


def _config(name: str, setting: TrainingSetting) -> ConfigDict:
    config = default_config()
    config.data.image_size = setting.image_size
    config.model.update({"name": "sonnet", "width": setting.width, "code_dim": setting.code_dim})
    use_preset(config, name)
    return config


def _options(name: str, setting: TrainingSetting) -> dict[str, Any]:
    options = _config(name, setting).quantizer.to_dict()
    return {"name": name} | {field: options[field] for field in sorted(FAMILIES[name].fields)}
