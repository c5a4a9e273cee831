"""rFID and the Inception score of reconstructions, as a metric of an evaluation."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vqjax.data import to_uint8
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score
from vqjax.evaluation.metric import Metric, Numbers, Outputs
from vqjax.importing.inception import load_inception
from vqjax.models.inception import INPUT_SIZE
from vqjax.runtime.files import file_checksum

_SPLITS = 10


class _Seen(NamedTuple):
    """Moments of originals and reconstructions, and the logits of the latter."""

    originals: Moments | None = None
    reconstructions: Moments | None = None
    logits: tuple[Float[np.ndarray, "_ classes"], ...] = ()


class ReconstructionFID(Metric):
    """rFID: the Fréchet distance of reconstructions from their originals, and the Inception score of reconstructions.

    As pytorch-fid measures it: images of 8 bits, scaled to 299 pixels by bilinear interpolation without antialiasing,
    and the features of the Inception network of 2015. Moments add up in double precision, batch by batch.

    Attributes:
      module: The network, :class:`vqjax.models.inception.FIDInception` or another with such features.
      variables: Its variables.
      weights: What identifies them, for the protocol.
      name: Name of the distance.

    Example:
      >>> from vqjax.models.inception import FIDInception
      >>> metric = ReconstructionFID(FIDInception(), {}, weights="weights of SHA-256 6726825d")
      >>> metric.protocol["rfid_val"].startswith("squared Fréchet distance of Inception features")
      True

    Source: Heusel et al., 2017 (arXiv 1706.08500); pytorch-fid.
    """

    module: nn.Module = flax.struct.field(pytree_node=False)
    variables: PyTree[Any]
    weights: str = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False, default="rfid_val")

    @classmethod
    def from_file(cls, file: str | Path, *, name: str = "rfid_val") -> "ReconstructionFID":
        """Return the metric with the weights in a file; see :func:`vqjax.importing.inception.load_inception`."""
        module, variables = load_inception(file)
        return cls(module, variables, f"weights of SHA-256 {file_checksum(Path(file))[:8]}", name)

    @property
    def protocol(self) -> dict[str, str]:
        how = f"8 bits, bilinear to {INPUT_SIZE} pixels without antialiasing as pytorch-fid, {self.weights}"
        return {
            self.name: f"squared Fréchet distance of Inception features of reconstructions and their originals; {how}",
            "ris": f"Inception score of reconstructions, mean over {_SPLITS} parts in random order; {how}",
            "ris_deviation": "standard deviation over these parts",
        }

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        both = jnp.concatenate([outputs["image"], to_uint8(outputs["reconstruction"])])
        features = self.module.apply(self.variables, scaled_for_inception(both))
        originals, reconstructions = jnp.split(features.pool, 2)
        logits = jnp.split(features.logits, 2)[1]
        return {
            "valid": outputs["valid"],
            "originals": originals,
            "reconstructions": reconstructions,
            "logits": logits,
        }

    def init(self) -> _Seen:
        return _Seen()

    def update(self, state: _Seen, measured: PyTree[Array]) -> _Seen:
        valid = np.asarray(measured["valid"])
        originals, reconstructions, logits = (
            np.asarray(measured[name])[valid] for name in ("originals", "reconstructions", "logits")
        )
        moments = [
            Moments.of(features) if before is None else before + Moments.of(features)
            for before, features in ((state.originals, originals), (state.reconstructions, reconstructions))
        ]
        return _Seen(*moments, (*state.logits, logits))

    def compute(self, state: _Seen) -> Numbers:
        logits = np.concatenate(state.logits)
        has_parts, has_moments = len(logits) >= _SPLITS, len(logits) > 1
        score, deviation = inception_score(logits, _SPLITS) if has_parts else (None, None)
        distance = frechet_distance(state.originals, state.reconstructions) if has_moments else None
        return {self.name: distance, "ris": score, "ris_deviation": deviation}


def scaled_for_inception(images: Array) -> Float[Array, "batch 299 299 3"]:
    """Scale images of 8 bits to the size and range of the Inception network, as pytorch-fid does.

    Args:
      images: uint8 ``[batch, height, width, 3]``.

    Example:
      >>> scaled_for_inception(jnp.zeros((1, 32, 32, 3), jnp.uint8)).min()
      Array(-1., dtype=float32)
    """
    size = (images.shape[0], INPUT_SIZE, INPUT_SIZE, images.shape[-1])
    return 2 * jax.image.resize(images.astype(jnp.float32) / 255, size, "bilinear", antialias=False) - 1
