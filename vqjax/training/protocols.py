"""Protocols of rFID and rFVD: what reconstructions are compared with, and by which features."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vqjax.data import ImageDataset, Joined, Splits
from vqjax.data.reading import example_spec, has_clips
from vqjax.errors import UserError, did_you_mean
from vqjax.evaluation import Metric, ReconstructionFVD
from vqjax.evaluation.clip_features import ClipFeatures
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.fid import WRAPPED, ReconstructionFID
from vqjax.evaluation.statistics import check_features, load_statistics
from vqjax.training.statistics import cached_statistics

PROTOCOLS = {
    "rfid_val": "the originals",
    "rfid_train": "all training images",
    f"rfid_{WRAPPED}": "the originals, with reconstructions stored as the code of the rotation trick does",
}
"""What rFID is measured from, by name."""

# Papers call the distance from the training images rfid_train, which that of training images is not.
_REFERENCES = {"eval": "val", "train": "of_train_images", "all": "of_all_images"}
# Clips of which Fréchet video distances are published, as by StyleGAN-V.
_PUBLISHED_CLIPS = 2048


def note_few_images(network: FeatureNetwork, count: int) -> None:
    """Say on standard error that images are too few for a covariance of all features, if they are.

    Args:
      network: The network.
      count: Number of images.
    """
    if count <= network.dim:
        print(
            f"note: a covariance of {network.dim} features takes {network.dim + 1} images, and there are {count}; "
            "Fréchet distances of so few are far too large.",
            file=sys.stderr,
            flush=True,
        )


def _note_few_clips(features: ClipFeatures, count: int) -> None:
    """Say on standard error that clips are fewer than those of published distances, if they are."""
    if count < _PUBLISHED_CLIPS or count <= features.dim:
        print(
            f"note: Fréchet video distances are published for {_PUBLISHED_CLIPS:,} clips, a covariance of "
            f"{features.dim} features takes {features.dim + 1}, and there are {count}; distances of so few are too "
            "large.",
            file=sys.stderr,
            flush=True,
        )


class Protocols:
    """The measures of features of an evaluation, checked before it begins.

    Example:
      >>> Protocols(None, split="eval").network is None
      True
    """

    def __init__(
        self,
        features: str | None,
        *,
        split: str,
        scaling: str | None = None,
        protocols: Sequence[str] = ("rfid_val",),
        statistics: str | None = None,
    ) -> None:
        """Read the network, and the statistics of other images.

        Args:
          features: File or name of the network; None for no such measures.
          split: ``"train"``, ``"eval"`` or ``"all"``.
          scaling: How images are scaled to the network.
          protocols: Keys of :data:`PROTOCOLS`.
          statistics: File of the statistics of other images.

        Raises:
          UserError: Something cannot be read, or does not go together.
        """
        for name in protocols:
            if name not in PROTOCOLS:
                raise UserError(
                    f"--protocols must be of {', '.join(PROTOCOLS)}, got {name!r}; {did_you_mean(name, PROTOCOLS)}"
                )
        if "rfid_train" in protocols and split != "eval":
            raise UserError(
                f"--split must be eval with rfid_train, which is of held-out images, got {split}; leave one of the two "
                "out."
            )
        for flag, is_given in {
            "scaling": scaling is not None,
            "protocols": set(protocols) != {"rfid_val"},
            "statistics": statistics is not None,
        }.items():
            if is_given and features is None:
                raise UserError(f"--features must name a network if --{flag} is given, such as --features=inception.")
        self.network = None if features is None else FeatureNetwork.from_file(features, scaling)
        self._split, self._protocols = split, protocols
        self._given = []
        if statistics is not None:
            loaded = load_statistics(statistics)
            check_features(loaded, self.network.identity, self.network.dim)
            self._given.append((f"to_{re.sub(r'\W+', '_', Path(statistics).stem)}", loaded))

    def metrics(self, splits: Splits, data: ConfigDict, *, batch_size: int, mesh: Mesh | None) -> list[Metric]:
        """Return the metric, if there is a network; for ``rfid_train`` it measures the training images.

        Args:
          splits: The images, or clips.
          data: Config of the data.
          batch_size: Images at once.
          mesh: Devices that share each batch.

        Raises:
          UserError: The protocols are not those of clips.
        """
        if self.network is None:
            return []
        dataset = Joined(splits) if self._split == "all" else getattr(splits, self._split)
        if (video := example_spec(dataset).get("video")) is not None:
            return [self._of_clips(self.network, f"{len(dataset):,} clips of {video.shape[0]} frames")]
        others = list(self._given)
        if "rfid_train" in self._protocols:
            measured = cached_statistics(
                splits.train, self.network, data, split="train", batch_size=batch_size, mesh=mesh
            )
            others.insert(0, ("train", measured))
        wrapped = f"rfid_{WRAPPED}" in self._protocols
        return [ReconstructionFID(self.network, _REFERENCES[self._split], tuple(others), wrapped)]

    def _of_clips(self, network: FeatureNetwork, clips: str) -> ReconstructionFVD:
        """The metric of clips, which are compared with their originals alone."""
        if set(self._protocols) != {"rfid_val"} or self._given:
            raise UserError(
                f"--protocols and --statistics must be left out for clips, got {', '.join(self._protocols)} and "
                f"{len(self._given)} files of statistics; rfvd_val compares clips with their originals."
            )
        reference = _REFERENCES[self._split].replace("images", "clips")
        return ReconstructionFVD(ClipFeatures(network), reference, clips)

    def note_few(self, dataset: ImageDataset) -> None:
        """Say on standard error that images or clips are too few for a distance, if they are and one is measured.

        Args:
          dataset: The examples.
        """
        if self.network is None:
            return
        if has_clips(dataset):
            _note_few_clips(ClipFeatures(self.network), len(dataset))
        else:
            note_few_images(self.network, len(dataset))
