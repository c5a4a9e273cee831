"""What the reproduction of the CIFAR-10 study trains: its own quantizer, the corrected one, and what nobody tried."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from studies.reproduction.quantizer import StudyQuantizer
from vqjax.models import VQVAE, ResidualDecoder, ResidualEncoder
from vqjax.quantizers import VectorQuantizer


class Variant(NamedTuple):
    """One way to train.

    Attributes:
      quantizer: Makes it from the number of codes and the commitment weight.
      moves_in_evaluation: Whether test batches change the codebook, as in the study's code.
      kmeans_start: Start the codebook from clusters of the untrained encoder's vectors.
      width: Channels of encoder and decoder.
      num_scalings: How often the encoder halves the image.
      code_dim: Features of the latents, by a 1x1 convolution without a ReLU after it; None: ``width``, after a ReLU.
    """

    quantizer: Callable[[int, float], nn.Module]
    moves_in_evaluation: bool = False
    kmeans_start: bool = False
    width: int = 256
    num_scalings: int = 2
    code_dim: int | None = None

    def model(self, num_codes: int, commitment_weight: float) -> VQVAE:
        """The autoencoder.

        Args:
          num_codes: Size of the codebook.
          commitment_weight: Of the loss.

        Returns:
          The module.
        """
        encoder = ResidualEncoder(self.width, self.num_scalings, latent_dim=self.code_dim)
        decoder = ResidualDecoder(self.width, self.num_scalings)
        return VQVAE(encoder, self.quantizer(num_codes, commitment_weight), decoder)


def study_uniform(key: Array, shape: tuple[int, int], dtype: object = float) -> Float[Array, "codes dim"]:
    """Initial codes of the study: uniform within one over their number.

    Example:
      >>> float(abs(study_uniform(jax.random.key(0), (4, 2))).max()) <= 0.25
      True
    """
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


def _ema(num_codes: int, commitment_weight: float, **options: object) -> VectorQuantizer:
    return VectorQuantizer(
        num_codes, commitment_weight=commitment_weight, codebook_init=study_uniform, decay=0.99, **options
    )


PROTOCOLS = {
    "faithful": Variant(StudyQuantizer, moves_in_evaluation=True),
    "corrected": Variant(_ema),
}
"""What the study's code does, in whole batches; and rotation, averages alone, frozen in evaluation, exact codes."""

ESTIMATORS = {
    "straight-through": Variant(partial(_ema, estimator="straight_through")),
    "reflection": Variant(partial(_ema, estimator="reflection")),
    "rotation, dead codes replaced": Variant(partial(_ema, replace_dead_codes=True)),
    "straight-through, dead codes replaced": Variant(
        partial(_ema, estimator="straight_through", replace_dead_codes=True)
    ),
    "rotation, k-means start": Variant(_ema, kmeans_start=True),
    "straight-through, k-means start": Variant(partial(_ema, estimator="straight_through"), kmeans_start=True),
    "rotation, 1x1 convolution": Variant(_ema, code_dim=256),
    "straight-through, 1x1 convolution": Variant(partial(_ema, estimator="straight_through"), code_dim=256),
}
"""The same budget, with what the study left out; its rotation is the protocol "corrected"."""

LATENT_DIMS = (3, 8, 32)
_ABLATED = ("straight_through", "rotation", "rotation_unscaled", "reflection")
ABLATION = {
    f"{estimator.replace('_', ' ')}, {dim} features": Variant(
        partial(_ema, estimator=estimator), width=64, num_scalings=1, code_dim=dim
    )
    for dim in LATENT_DIMS
    for estimator in _ABLATED
}
"""A 16x16 grid of few features: rotation, without its scale, mirrored, and straight-through."""

VARIANTS = PROTOCOLS | ESTIMATORS | ABLATION
"""All of them by name."""
