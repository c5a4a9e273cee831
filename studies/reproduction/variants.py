"""Variants of the reproduction: the quantizer of the CIFAR-10 study, a corrected one, and others that it left out.

The name is all that a record says of a variant, so another definition needs another name.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn

from studies.reproduction.quantizer import FaithfulQuantizer, initial_codes
from vqjax.models import VQVAE, ResidualDecoder, ResidualEncoder
from vqjax.quantizers import EMACodebook, Replacement, VectorQuantizer


class Variant(NamedTuple):
    """One way to train.

    Attributes:
      quantizer: Builds the quantizer from the number of codes and the commitment weight.
      moves_in_evaluation: Whether test batches change the codebook, as in the code of the study.
      kmeans_start: Whether the codebook starts from clusters of the untrained encoder's latents.
      width: Channels of encoder and decoder.
      num_scalings: Number of times that the encoder halves the image.
      latent_dim: Features of the latents, by a 1x1 convolution without a ReLU after it; None: ``width`` features
        after a ReLU.
    """

    quantizer: Callable[[int, float], nn.Module]
    moves_in_evaluation: bool = False
    kmeans_start: bool = False
    width: int = 256
    num_scalings: int = 2
    latent_dim: int | None = None

    def model(self, num_codes: int, commitment_weight: float) -> VQVAE:
        """Build the autoencoder.

        Args:
          num_codes: Size of the codebook.
          commitment_weight: Weight of the commitment loss.

        Returns:
          The module.
        """
        encoder = ResidualEncoder(self.width, self.num_scalings, latent_dim=self.latent_dim)
        decoder = ResidualDecoder(self.width, self.num_scalings)
        return VQVAE(encoder, self.quantizer(num_codes, commitment_weight), decoder)


def _ema(num_codes: int, commitment_weight: float, estimator: str = "rotation", **options: object) -> VectorQuantizer:
    return VectorQuantizer(
        num_codes, commitment_weight=commitment_weight, codebook_init=initial_codes, estimator=estimator, **options
    )


PROTOCOLS = {
    "faithful": Variant(FaithfulQuantizer, moves_in_evaluation=True),
    "corrected": Variant(_ema),
}
"""The code of the study in whole batches; and rotation, moving averages alone, frozen in evaluation, exact codes."""

ESTIMATORS = {
    "straight-through": Variant(partial(_ema, estimator="straight_through")),
    "reflection": Variant(partial(_ema, estimator="reflection")),
    "rotation, dead codes replaced": Variant(partial(_ema, codebook=EMACodebook(replace=Replacement()))),
    "straight-through, dead codes replaced": Variant(
        partial(_ema, estimator="straight_through", codebook=EMACodebook(replace=Replacement()))
    ),
    "rotation, k-means start": Variant(_ema, kmeans_start=True),
    "straight-through, k-means start": Variant(partial(_ema, estimator="straight_through"), kmeans_start=True),
    "rotation, 1x1 convolution": Variant(_ema, latent_dim=256),
    "straight-through, 1x1 convolution": Variant(partial(_ema, estimator="straight_through"), latent_dim=256),
}
"""Variants that the study left out, on the same budget; their plain rotation is the protocol "corrected"."""

LATENT_DIMS = (3, 8, 32)
_ABLATED = ("straight_through", "rotation", "rotation_unscaled", "reflection")
ABLATION = {
    f"{estimator.replace('_', ' ')}, {dim} features": Variant(
        partial(_ema, estimator=estimator), width=64, num_scalings=1, latent_dim=dim
    )
    for dim in LATENT_DIMS
    for estimator in _ABLATED
}
"""Estimators on a 16x16 grid of few features."""

VARIANTS = PROTOCOLS | ESTIMATORS | ABLATION
"""All variants by name."""
