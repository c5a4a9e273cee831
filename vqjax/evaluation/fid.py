"""rFID and the Inception score of reconstructions, as a metric of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from vqjax.data import to_uint8
from vqjax.evaluation.collectors import Collector
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score
from vqjax.evaluation.metric import Metric, Numbers, Outputs
from vqjax.evaluation.statistics import load_statistics
from vqjax.importing.inception import load_inception
from vqjax.models.inception import INPUT_SIZE, InceptionFeatures
from vqjax.runtime.files import file_checksum
from vqjax.runtime.paths import local_path

_SPLITS = 10


class _Seen(NamedTuple):
    """Moments of originals and reconstructions, and the logits of the latter."""

    originals: Moments | None = None
    reconstructions: Moments | None = None
    logits: tuple[Float[np.ndarray, "_ classes"], ...] = ()


class _OfInception(Metric):
    """Base class of metrics of Inception features.

    Attributes:
      module: The network, :class:`vqjax.models.inception.FIDInception` or another with such features.
      variables: Its variables.
      weights: What identifies them, for the protocol.
    """

    module: nn.Module = flax.struct.field(pytree_node=False)
    variables: PyTree[Any]
    weights: str = flax.struct.field(pytree_node=False)

    @classmethod
    def from_file(cls, file: str | Path, **settings: Any) -> "_OfInception":
        """Return the metric with the weights in a file; see :func:`vqjax.importing.inception.load_inception`.

        Args:
          file: The file.
          **settings: Other attributes.
        """
        file = local_path(file, "inception")
        module, variables = load_inception(file)
        return cls(module, variables, f"weights of SHA-256 {file_checksum(file)[:8]}", **settings)

    @property
    def how(self) -> str:
        """Protocol of the features."""
        return f"8 bits, bilinear to {INPUT_SIZE} pixels without antialiasing as pytorch-fid, {self.weights}"

    def features(self, images: UInt8[Array, "batch height width 3"]) -> InceptionFeatures:
        """Return the features of images of 8 bits."""
        return self.module.apply(self.variables, scaled_for_inception(images))


class ReconstructionFID(_OfInception):
    """rFID: the Fréchet distance of reconstructions from their originals, and the Inception score of reconstructions.

    As pytorch-fid measures it: images of 8 bits, scaled to 299 pixels by bilinear interpolation without antialiasing,
    and the features of the Inception network of 2015. Moments add up in double precision, batch by batch.

    Attributes:
      name: Name of the distance.
      statistics: File of the statistics of other images, for a distance of the reconstructions from these as well.

    Example:
      >>> from vqjax.models.inception import FIDInception
      >>> metric = ReconstructionFID(FIDInception(), {}, weights="weights of SHA-256 6726825d")
      >>> metric.protocol["rfid_val"].startswith("squared Fréchet distance of Inception features")
      True

    Source: Heusel et al., 2017 (arXiv 1706.08500); pytorch-fid.
    """

    name: str = flax.struct.field(pytree_node=False, default="rfid_val")
    statistics: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def protocol(self) -> dict[str, str]:
        distance = "squared Fréchet distance of Inception features of reconstructions"
        others = {}
        if self.statistics is not None:
            path = local_path(self.statistics, "statistics")
            file = f"{path.name}, SHA-256 {file_checksum(path)[:8]}"
            others[self._other_name] = f"{distance} and of {file}; {self.how}"
        return {
            self.name: f"{distance} and their originals; {self.how}",
            **others,
            "ris": f"Inception score of reconstructions, mean over {_SPLITS} parts in random order; {self.how}",
            "ris_deviation": "standard deviation over these parts",
        }

    @property
    def _other_name(self) -> str:
        return f"rfid_to_{Path(self.statistics).stem}"

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        both = jnp.concatenate([outputs["image"], to_uint8(outputs["reconstruction"])])
        features = self.features(both)
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
        originals, reconstructions, logits = (
            _valid_rows(measured, name) for name in ("originals", "reconstructions", "logits")
        )
        return _Seen(
            _added(state.originals, originals),
            _added(state.reconstructions, reconstructions),
            (*state.logits, logits),
        )

    def compute(self, state: _Seen) -> Numbers:
        logits = np.concatenate(state.logits)
        has_parts, has_moments = len(logits) >= _SPLITS, len(logits) > 1
        score, deviation = inception_score(logits, _SPLITS) if has_parts else (None, None)
        numbers: Numbers = {
            self.name: frechet_distance(state.originals, state.reconstructions) if has_moments else None
        }
        if self.statistics is not None:
            others = load_statistics(self.statistics)
            numbers[self._other_name] = frechet_distance(others, state.reconstructions) if has_moments else None
        return numbers | {"ris": score, "ris_deviation": deviation}


class FeatureMoments(_OfInception, Collector):
    """Moments of the Inception features of the images themselves, for reference statistics."""

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return {"valid": outputs["valid"], "pool": self.features(outputs["image"]).pool}

    def init(self) -> Moments | None:
        return None

    def update(self, state: Moments | None, measured: PyTree[Array]) -> Moments:
        return _added(state, _valid_rows(measured, "pool"))

    def compute(self, state: Moments) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in state._asdict().items()}

    @staticmethod
    def moments_of(collected: Mapping[str, np.ndarray]) -> Moments:
        """Return the moments in what an evaluation has collected."""
        return Moments(int(collected["count"]), collected["mean"], collected["scatter"])


def _valid_rows(measured: PyTree[Array], name: str) -> np.ndarray:
    return np.asarray(measured[name])[np.asarray(measured["valid"])]


def _added(before: Moments | None, features: Float[np.ndarray, "images dim"]) -> Moments:
    moments = Moments.of(features)
    return moments if before is None else before + moments


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
