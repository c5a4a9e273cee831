"""Training a small autoencoder on photographs for a study: always the same images, steps and evaluation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from vqjax.data import Batch, batch_indices, materialize
from vqjax.data.dataset import ImageDataset, Splits
from vqjax.data.statistics import pixel_variance
from vqjax.evaluation.evaluate import evaluate_model
from vqjax.models import VQVAE
from vqjax.tasks.state import TrainState, create_state
from vqjax.tasks.vqvae import StepOptions, train_step

_STEPS_PER_LOOK = 10
_EVALUATION_BATCH = 64


@dataclasses.dataclass(frozen=True)
class TrainingSetting:
    """What all runs of a study have in common.

    Attributes:
      steps: Optimizer steps.
      batch_size: Images per step.
      image_size: Side of the crops in pixels; a quarter of it is the side of the latent grid.
      width: Channels of sonnet's encoder and decoder.
      code_dim: Features of a latent vector.
      learning_rate: Of Adam, constant.
    """

    steps: int = 400
    batch_size: int = 16
    image_size: int = 32
    width: int = 32
    code_dim: int = 16
    learning_rate: float = 1e-3


class Photographs(NamedTuple):
    """The images of all runs.

    Attributes:
      splits: Training crops and held-out ones.
      training: The training crops in memory, uint8.
      variance: Of their pixels in [-1, 1].
    """

    splits: Splits
    training: np.ndarray
    variance: float


class Outcome(NamedTuple):
    """What a training ends with.

    Attributes:
      diverged: Whether the loss stopped to be a finite number, which ends the training.
      state: The last one.
      heldout: Metrics of the held-out photographs; none where it diverged.
      late: Metrics of the training steps that were looked at in the last tenth, averaged.
    """

    diverged: bool
    state: TrainState
    heldout: dict[str, float | int | None]
    late: dict[str, float]


class PhotographTraining:
    """One model, compiled once for all its starts and seeds.

    Args:
      model: The autoencoder.
      setting: What all runs have in common.
      photographs: The images.
      encoder_gradient: See :class:`vqjax.tasks.vqvae.StepOptions`.
    """

    def __init__(
        self,
        model: VQVAE,
        setting: TrainingSetting,
        photographs: Photographs,
        encoder_gradient: str = "estimator",
    ) -> None:
        self._model, self._setting, self._photographs = model, setting, photographs
        self._encoder_gradient = encoder_gradient
        self._optimizer = optax.adam(setting.learning_rate)
        self._step = jax.jit(self._take_step, donate_argnums=0)

    def start(self, seed: int, model: VQVAE | None = None) -> TrainState:
        """The state before the first step.

        Args:
          seed: Of parameters and codes.
          model: Another one with the same variables, which it initializes in its own way.

        Returns:
          The state.
        """
        shape = (self._setting.image_size, self._setting.image_size, 3)
        return create_state(model or self._model, self._optimizer, shape, seed)

    def run(self, state: TrainState, seed: int, on_step: Callable[[int, dict[str, Array]], None]) -> Outcome:
        """Trains, and evaluates on the held-out photographs.

        Args:
          state: Before the first step; its memory is used up.
          seed: Of the order of the images and all noise.
          on_step: Called every 10 steps with the number of steps done and the last step's metrics.

        Returns:
          What came out.
        """
        setting, looks = self._setting, []
        for number in range(1, setting.steps + 1):
            state, metrics = self._step(state, self._batch(seed, number - 1), seed)
            # Looking at a number waits for its step.
            if number % _STEPS_PER_LOOK and number < setting.steps:
                continue
            if not np.isfinite(metrics["loss"]):
                return Outcome(True, state, {}, {})
            if number > setting.steps * 0.9:
                looks.append({name: float(value) for name, value in metrics.items()})
            on_step(number, metrics)
        late = {name: float(np.mean([look[name] for look in looks])) for name in looks[0]}
        heldout: ImageDataset = self._photographs.splits.eval
        result = evaluate_model(self._model, state.variables, heldout, batch_size=_EVALUATION_BATCH)
        return Outcome(False, state, result.metrics, late)

    def _take_step(self, state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        options = StepOptions(
            seed=seed,
            flip=True,
            reconstruction_scale=1 / self._photographs.variance,
            encoder_gradient=self._encoder_gradient,
        )
        return train_step(state, batch, self._model, self._optimizer, options)

    def _batch(self, seed: int, number: int) -> Batch:
        images = self._photographs.training
        return {"image": images[batch_indices(seed, number, self._setting.batch_size, len(images))]}


def load_photographs(load_splits: Callable[[int], Splits], image_size: int) -> Photographs:
    """Loads the images once for all runs.

    Args:
      load_splits: Gives the splits for a size, such as :func:`vqjax.data.photos.photo_splits`.
      image_size: Side of the crops in pixels.

    Returns:
      The images.
    """
    splits = load_splits(image_size)
    return Photographs(splits, materialize(splits.train)["image"], pixel_variance(splits.train))
