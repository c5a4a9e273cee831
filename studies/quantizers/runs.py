"""Runs of the study in docs/quantizers.md: what every quantizer reconstructs, and what it costs."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from studies.common.records import Results, Run
from studies.common.training import OnStep, Photographs, PhotographTraining, TrainingSetting, make_trainings
from studies.quantizers.variants import VARIANTS
from vqjax.data.dataset import Splits
from vqjax.data.photos import photo_splits
from vqjax.models import VQVAE
from vqjax.models.registry import build_model
from vqjax.quantizers.recipes import RECIPES

_KEPT = ("psnr", "psnr_gain", "usage_split", "perplexity_split", "bits_per_image", "entropy_bits_per_image")
_TIMED_MAPS = 64
_REPETITIONS = 21


def quantizer_runs(setting: TrainingSetting, seeds: int, chosen: Sequence[str] = tuple(VARIANTS)) -> list[Run]:
    """List the trainings.

    Args:
      setting: Settings that all runs have in common.
      seeds: Runs per quantizer.
      chosen: Names of quantizers; all by default.

    Returns:
      One run per quantizer and seed; those of one quantizer follow one another.
    """
    return [
        Run(f"{name}--seed{seed}", {"quantizer": name, "seed": seed} | vars(setting))
        for name in chosen
        for seed in range(seeds)
    ]


def variant_model(name: str, setting: TrainingSetting) -> VQVAE:
    """Build the autoencoder with the recipe of a quantizer.

    Args:
      name: Name of the quantizer.
      setting: Sizes of the model.

    Returns:
      The module, without variables.

    Example:
      >>> variant_model("fsq", TrainingSetting()).quantizer.num_codes
      240
    """
    model = {"name": "sonnet", "width": setting.width, "latent_dim": setting.latent_dim}
    quantizer = dict(RECIPES[name])
    if name == "binary_mapper":
        model["latent_dim"] = quantizer["bits"]
    if name == "multi_scale_vq":
        side = setting.image_size // 4
        quantizer["scales"] = tuple(2**power for power in range(side.bit_length()))
    return build_model(model, quantizer)


def make_runs(
    runs: Sequence[Run],
    results: Results,
    setting: TrainingSetting,
    load_splits: Callable[[int], Splits] = photo_splits,
) -> None:
    """Train, evaluate and time.

    Args:
      runs: Runs of :func:`quantizer_runs`.
      results: Receives their records.
      setting: The setting of these runs.
      load_splits: Gives the images for an image size.
    """

    def prepare(name: str, photographs: Photographs) -> Callable[..., dict[str, Any]]:
        model = variant_model(name, setting)
        training = PhotographTraining(model, setting, photographs)
        cost = microseconds_per_vector(model, setting)

        def train(settings: Mapping[str, Any], on_step: OnStep) -> dict[str, Any]:
            seed = settings["seed"]
            outcome = training.run(training.start(seed), seed, on_step)
            measured = {"diverged": outcome.diverged, "images_per_second": outcome.images_per_second}
            measured |= {name: outcome.evaluation.get(name) for name in _KEPT}
            return measured | {"microseconds_per_vector": cost}

        return train

    variant_of = lambda settings: settings["quantizer"]  # noqa: E731
    make_trainings(runs, results, setting, variant_of=variant_of, prepare=prepare, load_splits=load_splits)


def microseconds_per_vector(model: VQVAE, setting: TrainingSetting) -> float:
    """Time a training step of a quantizer alone: forward, gradients to input and parameters, update of its state.

    Args:
      model: An autoencoder with the quantizer.
      setting: Sizes of the latent maps.

    Returns:
      Median over repetitions, per latent vector.
    """
    side = setting.image_size // 4
    z = jax.random.normal(jax.random.key(0), (_TIMED_MAPS, side, side, model.encoder.latent_dim))
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
    # The first repetition compiles.
    return float(np.median(seconds[1:])) * 1e6 / (_TIMED_MAPS * side * side)
