"""The Fréchet video distance of reconstructed clips, added up batch by batch."""

from typing import NamedTuple

import flax.struct
import numpy as np
from jaxtyping import Array, PyTree

from vqjax.data import to_uint8
from vqjax.evaluation.clip_features import ClipFeatures
from vqjax.evaluation.fid import are_finite, check_finite
from vqjax.evaluation.frechet import Moments, frechet_distance
from vqjax.evaluation.metric import Metric, Numbers, Outputs


class _Seen(NamedTuple):
    """Moments of the features of originals, and of reconstructions."""

    originals: Moments = Moments.none()
    reconstructions: Moments = Moments.none()


class ReconstructionFVD(Metric):
    """rFVD: the squared Fréchet distance of reconstructed clips from their originals, ``rfvd_val`` over I3D.

    Frames have 8 bits; moments add up in double precision, batch by batch. Over another network it is another distance,
    ``rfvd_NETWORK_val``.

    Attributes:
      features: Features of clips.
      reference: Last part of the name: ``"val"`` for held-out clips.
      clips: Number of clips and their frames, for the protocol.

    Example:
      >>> from vqjax.evaluation.features import FeatureNetwork
      >>> from vqjax.models.i3d import I3D
      >>> network = FeatureNetwork(I3D(), {}, "i3d", "SHA-256 0123abcd", "fvd", 224, "fvd", takes_clips=True)
      >>> ReconstructionFVD(ClipFeatures(network), clips="2,048 clips of 16 frames").protocol["rfvd_val"].split("; ")[0]
      'squared Fréchet distance of features of reconstructions and their originals, 2,048 clips of 16 frames'

    Source: Unterthiner et al., 2018 (arXiv 1812.01717); google-research, ``frechet_video_distance``.
    """

    features: ClipFeatures
    reference: str = flax.struct.field(pytree_node=False, default="val")
    clips: str = flax.struct.field(pytree_node=False, default="clips of any length")

    @property
    def protocol(self) -> dict[str, str]:
        pair = "squared Fréchet distance of features of reconstructions and their originals"
        return {self._name: f"{pair}, {self.clips}; {self.features.how}"}

    @property
    def _name(self) -> str:
        network = self.features.network
        name = "" if network.name == "i3d" else network.name
        return "_".join(filter(None, ["rfvd", name, network.unusual_scaling, self.reference]))

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        pair = outputs["video"], to_uint8(outputs["reconstruction"])
        features = [self.features(clips) for clips in pair]
        return {"valid": outputs["valid"], "finite": are_finite(outputs["reconstruction"]), "features": features}

    def init(self) -> _Seen:
        return _Seen()

    def update(self, state: _Seen, measured: PyTree[Array]) -> _Seen:
        check_finite(measured, state.originals.count)
        valid = np.asarray(measured["valid"])
        rows = (np.asarray(features)[valid] for features in measured["features"])
        return _Seen(*(moments.including(part) for moments, part in zip(state, rows, strict=True)))

    def compute(self, state: _Seen) -> Numbers:
        return {self._name: frechet_distance(*state) if state.originals.count > 1 else None}
