"""Small autoencoders trained on photographs: the same images, steps and evaluation in every run of a study."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from studies.common.records import Results, Run
from vqjax.data import augment, batch_indices, materialize
from vqjax.data.dataset import Splits
from vqjax.data.photos import photo_splits
from vqjax.data.statistics import pixel_variance
from vqjax.models import VQVAE
from vqjax.reporting import Progress
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.state import TrainState
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training.build import initial_state
from vqjax.training.evaluate import evaluate_state

_STEPS_PER_REPORT = 10
_EVAL_BATCH_SIZE = 64

OnStep = Callable[[int, Mapping[str, Array]], None]
"""Called with the number of steps done and the metrics of the last one."""


@dataclasses.dataclass(frozen=True)
class TrainingSetting:
    """Settings that all runs of a study have in common.

    Attributes:
      steps: Optimizer steps.
      batch_size: Images per step.
      image_size: Side of the crops in pixels; the side of the latent grid is a quarter of it.
      width: Channels of sonnet's encoder and decoder.
      latent_dim: Features of a latent vector.
      learning_rate: Constant learning rate of Adam.
    """

    steps: int = 400
    batch_size: int = 16
    image_size: int = 32
    width: int = 32
    latent_dim: int = 16
    learning_rate: float = 1e-3


class Photographs(NamedTuple):
    """Images of all runs.

    Attributes:
      splits: Crops for training and for evaluation.
      training: The training crops in memory, uint8.
      variance: Variance of their pixels in [-1, 1].
    """

    splits: Splits
    training: np.ndarray
    variance: float


class Outcome(NamedTuple):
    """Result of a training.

    Attributes:
      diverged: Whether the training ended early because the loss was not finite.
      state: The last state.
      evaluation: Metrics of the eval split; empty after divergence.
      late: Mean metrics of the reported training steps in the last tenth; empty after divergence.
      images_per_second: Speed without compilation; None if the training was too short to tell.
    """

    diverged: bool
    state: TrainState
    evaluation: dict[str, float | int | None]
    late: dict[str, float]
    images_per_second: float | None


class PhotographTraining:
    """Training of one model, compiled once for all its initial codes and seeds.

    Args:
      model: The autoencoder.
      setting: Settings that all runs have in common.
      photographs: The images.
      decoder_gradient: See :class:`vqjax.tasks.decoder_gradient.DecoderGradientTask`; None for the estimator.
      kmeans_init: Whether the codebook starts from clusters of the untrained encoder's latents.
    """

    def __init__(
        self,
        model: VQVAE,
        setting: TrainingSetting,
        photographs: Photographs,
        decoder_gradient: str | None = None,
        kmeans_init: bool = False,
    ) -> None:
        self._setting, self._photographs = setting, photographs
        parts = {
            "model": model,
            "optimizer": optax.adam(setting.learning_rate),
            "loss": lambda x, y: jnp.mean(jnp.square(x - y)) / photographs.variance,
            "augment": functools.partial(augment, flip=True, crop_padding=None),
            "kmeans_init": kmeans_init,
        }
        if decoder_gradient is None:
            self._task = VQVAETask(**parts)
        else:
            self._task = DecoderGradientTask(**parts, gradient=decoder_gradient)
        self._step = jax.jit(self._take_step, donate_argnums=0)

    def start(self, seed: int, model: VQVAE | None = None) -> TrainState:
        """Create the state before the first step.

        Args:
          seed: Seed of parameters and codes.
          model: A model with the same variables and other initial values, if given.

        Returns:
          The state.
        """
        task = self._task if model is None else dataclasses.replace(self._task, model=model)
        return initial_state(task, self._photographs.splits.train, seed=seed, batch_size=self._setting.batch_size)

    def run(self, state: TrainState, seed: int, on_step: OnStep) -> Outcome:
        """Train, and evaluate on the eval split.

        Args:
          state: State before the first step; its memory is donated.
          seed: Seed of the order of the images and of all noise.
          on_step: Called every 10 steps.

        Returns:
          The result.
        """
        setting, reported, times = self._setting, [], []
        for number in range(1, setting.steps + 1):
            state, metrics = self._step(state, self._batch(seed, number - 1), seed)
            # Reading a number waits for its step.
            if number % _STEPS_PER_REPORT and number < setting.steps:
                continue
            if not np.isfinite(metrics["loss"]):
                return Outcome(True, state, {}, {}, None)
            if number > setting.steps * 0.9:
                reported.append({name: float(value) for name, value in metrics.items()})
            times.append((number, time.monotonic()))
            on_step(number, metrics)
        late = {name: float(np.mean([metrics[name] for metrics in reported])) for name in reported[0]}
        # Starts at the first report, after compilation.
        steps, seconds = (last - first for first, last in zip(times[0], times[-1], strict=True))
        speed = steps * setting.batch_size / seconds if steps else None
        result = evaluate_state(self._task, state, self._photographs.splits.eval, batch_size=_EVAL_BATCH_SIZE)
        return Outcome(False, state, result.metrics, late, speed)

    def _take_step(self, state: TrainState, images: Array, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        return self._task.train_step(state, {"image": images}, key)

    def _batch(self, seed: int, number: int) -> np.ndarray:
        images = self._photographs.training
        return images[batch_indices(seed, number, self._setting.batch_size, len(images))]


def load_photographs(load_splits: Callable[[int], Splits], image_size: int) -> Photographs:
    """Load the images once for all runs.

    Args:
      load_splits: Gives the splits for an image size, such as :func:`vqjax.data.photos.photo_splits`.
      image_size: Side of the crops in pixels.

    Returns:
      The images.
    """
    splits = load_splits(image_size)
    return Photographs(splits, materialize(splits.train)["image"], pixel_variance(splits.train))


def make_trainings(
    runs: Sequence[Run],
    results: Results,
    setting: TrainingSetting,
    *,
    variant_of: Callable[[Mapping[str, Any]], Any],
    prepare: Callable[[Any, Photographs], Callable[[Mapping[str, Any], OnStep], dict[str, Any]]],
    load_splits: Callable[[int], Splits] = photo_splits,
) -> None:
    """Make the trainings of a study, with one progress line for all of them.

    Args:
      runs: Runs to make; those of one variant follow one another.
      results: Receives the record of each run.
      setting: Settings that all runs have in common.
      variant_of: Gives the variant from the settings of a run.
      prepare: Compiles a variant for the photographs; returns a function that trains from the settings of a run and
        returns what is recorded, with ``diverged``, ``psnr`` and ``perplexity_split``.
      load_splits: See :func:`load_photographs`.
    """
    if not runs:
        return
    print(f"{len(runs)} runs of {setting.steps} steps; compiling the first", file=sys.stderr, flush=True)
    photographs = load_photographs(load_splits, setting.image_size)
    steps_done = 0
    with Progress(len(runs) * setting.steps, 0, setting.batch_size) as progress:

        def show(step: int, metrics: Mapping[str, Array]) -> None:
            progress.metrics({name: metrics[name] for name in ("loss", "psnr", "perplexity")})
            progress.update(steps_done + step)

        for variant, of_variant in itertools.groupby(runs, key=lambda run: variant_of(run.settings)):
            train = prepare(variant, photographs)
            for run in of_variant:
                began = time.monotonic()
                measured = train(run.settings, show)
                results.add(run, measured, time.monotonic() - began)
                progress.say(f"{run.name}: {_headline(measured)}")
                steps_done += setting.steps
                progress.update(steps_done)


def _headline(measured: Mapping[str, Any]) -> str:
    if measured["diverged"]:
        return "diverged"
    return f"eval PSNR {measured['psnr']:.2f} dB, perplexity {measured['perplexity_split']:.1f}"
