"""Training small autoencoders on photographs from starts that a codebook may not survive."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from vqjax import VectorQuantizer
from vqjax.data import batch_indices, materialize
from vqjax.data.dataset import ImageDataset, Splits
from vqjax.evaluation.run import evaluate_model
from vqjax.experiments.variants import Start, Variant
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.training.codebook_start import start_from_kmeans
from vqjax.training.state import TrainState, create_state
from vqjax.training.step import StepOptions, train_step
from vqjax.training.variance import pixel_variance

_STEPS_PER_LOOK = 10
_EVALUATION_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs have in common.

    Attributes:
      steps: Optimizer steps.
      batch_size: Images per step.
      image_size: Side of the crops in pixels; a quarter of it is the side of the latent grid.
      width: Channels of sonnet's encoder and decoder.
      code_dim: Features of a latent vector.
      num_codes: Size of the codebook.
      learning_rate: Of Adam, constant.
    """

    steps: int = 400
    batch_size: int = 16
    image_size: int = 32
    width: int = 32
    code_dim: int = 16
    num_codes: int = 512
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


class Experiment:
    """One variant, compiled once for all its starts and seeds.

    Args:
      variant: What is compared.
      setting: What all runs have in common.
      photographs: The images.
    """

    def __init__(self, variant: Variant, setting: Setting, photographs: Photographs) -> None:
        self._variant, self._setting, self._photographs = variant, setting, photographs
        self._model = build_model(variant, setting)
        self._optimizer = optax.adam(setting.learning_rate)
        self._step = jax.jit(self._take_step, donate_argnums=0)

    def run(self, start: Start, seed: int, on_step: Callable[[int, dict[str, Array]], None]) -> dict[str, Any]:
        """Trains from one start with one seed, and evaluates on the held-out photographs.

        Args:
          start: Of the codes.
          seed: Of parameters, codes, order of the images and all noise.
          on_step: Called every 10 steps with the number of steps done and the last step's metrics.

        Returns:
          Held-out numbers, ``norm_ratio`` (mean of :math:`|q|/|z|` over batches of the last tenth of the steps) and
          ``diverged``. A run whose loss is no finite number stops, and tells only that.
        """
        setting = self._setting
        state = self._start(start, seed)
        ratios: list[float] = []
        for number in range(1, setting.steps + 1):
            state, metrics = self._step(state, self._batch(seed, number - 1), seed)
            # Looking at a number waits for its step.
            if number % _STEPS_PER_LOOK and number < setting.steps:
                continue
            if not np.isfinite(metrics["loss"]):
                return {"diverged": True}
            if number > setting.steps * 0.9:
                ratios.append(float(metrics["norm_ratio"]))
            on_step(number, metrics)
        return {"diverged": False, "norm_ratio": np.mean(ratios)} | self._evaluate(state)

    def _take_step(self, state: TrainState, images: Array, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        options = StepOptions(
            seed=seed,
            flip=True,
            reconstruction_scale=1 / self._photographs.variance,
            encoder_gradient=self._variant.encoder_gradient,
        )
        return train_step(state, images, self._model, self._optimizer, options)

    def _batch(self, seed: int, number: int) -> np.ndarray:
        images = self._photographs.training
        return images[batch_indices(seed, number, self._setting.batch_size, len(images))]

    def _start(self, start: Start, seed: int) -> TrainState:
        setting = self._setting
        shape = (setting.image_size, setting.image_size, 3)
        # Another initializer makes other values of the same variables, so the compiled step serves all starts.
        model = build_model(self._variant, setting, codebook_init=scaled_codes(start.scale))
        state = create_state(model, self._optimizer, shape, seed)
        if not self._variant.kmeans_start:
            return state
        config = ConfigDict({"seed": seed, "batch_size": setting.batch_size, "quantizer": {}})
        config.quantizer.num_codes = setting.num_codes
        return start_from_kmeans(model, state, self._photographs.splits.train, config)

    def _evaluate(self, state: TrainState) -> dict[str, Any]:
        heldout: ImageDataset = self._photographs.splits.heldout
        metrics = evaluate_model(self._model, state.variables, heldout, batch_size=_EVALUATION_BATCH).metrics
        kept = ("psnr", "psnr_gain", "perplexity_split", "quantization_error")
        used = self._setting.num_codes - metrics["dead_codes_split"]
        return {name: metrics[name] for name in kept} | {"codes_used": used}


def build_model(variant: Variant, setting: Setting, **quantizer: Any) -> VQVAE:
    """The autoencoder of a variant.

    Args:
      variant: Gives the quantizer's arguments.
      setting: Gives the sizes.
      **quantizer: Further arguments of the quantizer.

    Returns:
      The module, without variables.

    Example:
      >>> build_model(Variant({"decay": 0.8}), Setting()).quantizer.decay
      0.8
    """
    return VQVAE(
        SonnetEncoder(width=setting.width, code_dim=setting.code_dim),
        VectorQuantizer(num_codes=setting.num_codes, **variant.quantizer, **quantizer),
        SonnetDecoder(width=setting.width),
    )


def scaled_codes(scale: float) -> Callable[..., Array]:
    """An initializer of codes with an expected squared length of ``scale ** 2``.

    Args:
      scale: Factor on the library's initial codes.

    Returns:
      The initializer, of key, shape and dtype.

    Example:
      >>> codes = scaled_codes(10.0)(jax.random.key(0), (1000, 16))
      >>> 95 < float((codes**2).sum(axis=-1).mean()) < 105
      True
    """
    return nn.initializers.variance_scaling(scale**2, "fan_in", "uniform", in_axis=1, out_axis=0)


def load_photographs(load_splits: Callable[[int], Splits], image_size: int) -> Photographs:
    """Loads the images once for all runs.

    Args:
      load_splits: Gives the splits for a size, such as :func:`vqjax.data.photos.photo_splits`.
      image_size: Side of the crops in pixels.

    Returns:
      The images.
    """
    splits = load_splits(image_size)
    return Photographs(splits, materialize(splits.train), pixel_variance(splits.train))
