"""Collapse experiment: autoencoders trained on photographs from initial codes that a codebook may not survive."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from studies.choosing.variants import Variant
from studies.common.training import OnStep, Photographs, PhotographTraining, TrainingSetting
from vqjax import VectorQuantizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.tasks.state import TrainState

_KEPT = ("psnr", "psnr_gain", "perplexity_split", "quantization_error")


@dataclasses.dataclass(frozen=True)
class Setting(TrainingSetting):
    """Settings that all runs have in common.

    Attributes:
      num_codes: Size of the codebook. Other attributes: see :class:`TrainingSetting`.
    """

    num_codes: int = 512


class Experiment:
    """One variant, compiled once for all its initial codes and seeds.

    Args:
      variant: The variant.
      setting: Settings that all runs have in common.
      photographs: The images.
    """

    def __init__(self, variant: Variant, setting: Setting, photographs: Photographs) -> None:
        self._variant, self._setting = variant, setting
        model = build_model(variant, setting)
        self._training = PhotographTraining(
            model, setting, photographs, variant.decoder_gradient, kmeans_init=variant.kmeans_start
        )

    def run(self, initial_scale: float, seed: int, on_step: OnStep) -> dict[str, Any]:
        """Train with one seed, and evaluate on the eval split.

        Args:
          initial_scale: Factor on the library's initial codes.
          seed: Seed of parameters, codes, order of the images and all noise.
          on_step: Called every 10 steps.

        Returns:
          Metrics of the eval split, ``norm_ratio`` (mean of :math:`|q|/|z|` over batches of the last tenth of the
          steps) and ``diverged``, which is alone in a run whose loss was not finite.
        """
        outcome = self._training.run(self._start(initial_scale, seed), seed, on_step)
        if outcome.diverged:
            return {"diverged": True}
        kept = {name: outcome.evaluation[name] for name in _KEPT}
        used = self._setting.num_codes - outcome.evaluation["dead_codes_split"]
        return {"diverged": False, "norm_ratio": outcome.late["norm_ratio"]} | kept | {"codes_used": used}

    def _start(self, initial_scale: float, seed: int) -> TrainState:
        # Another initializer gives other values of the same variables, so one compiled step serves all initial codes.
        model = build_model(self._variant, self._setting, codebook_init=scaled_codes(initial_scale))
        return self._training.start(seed, model)


def build_model(variant: Variant, setting: Setting, **quantizer: Any) -> VQVAE:
    """Build the autoencoder of a variant.

    Args:
      variant: The variant, which gives the quantizer's arguments.
      setting: Sizes of model and codebook.
      **quantizer: Further arguments of the quantizer.

    Returns:
      The module, without variables.

    Example:
      >>> build_model(Variant({"distance": "cosine"}), Setting()).quantizer.distance
      'cosine'
    """
    return VQVAE(
        SonnetEncoder(width=setting.width, latent_dim=setting.latent_dim),
        VectorQuantizer(num_codes=setting.num_codes, **{"estimator": "rotation", **variant.quantizer}, **quantizer),
        SonnetDecoder(width=setting.width),
    )


def scaled_codes(scale: float) -> Callable[..., Array]:
    """Return an initializer of codes with an expected squared length of ``scale ** 2``.

    Args:
      scale: Factor on the library's initial codes.

    Returns:
      A function of key, shape and dtype.

    Example:
      >>> import jax
      >>> codes = scaled_codes(10.0)(jax.random.key(0), (1000, 16))
      >>> 95 < float((codes**2).sum(axis=-1).mean()) < 105
      True
    """
    return nn.initializers.variance_scaling(scale**2, "fan_in", "uniform", in_axis=1, out_axis=0)
