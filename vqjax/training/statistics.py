"""Reference statistics of a data set, for the Fréchet distance of anything from it."""

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vqjax.data import ImageDataset, Joined, evaluation_batches, fingerprint, load_splits
from vqjax.data.reading import has_clips
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.fid import FeatureMoments
from vqjax.evaluation.statistics import Statistics, load_statistics, save_statistics
from vqjax.reporting.progress import progress_of
from vqjax.runtime.cache import user_cache
from vqjax.runtime.files import new_file
from vqjax.runtime.processes import is_main_process, true_in_all_processes
from vqjax.training.config import base_config, override_all

# Of a folder in which a few images change, a run may go on, but its statistics are others.
_FINGERPRINTED_IMAGES = 1000


def write_statistics(
    *overrides: str,
    features: str,
    output: str | Path,
    scaling: str | None = None,
    split: Literal["train", "eval", "all"] = "train",
    batch_size: int = 64,
) -> None:
    """Measure mean and covariance of features, against which vqjax eval --statistics=FILE measures.

    The images are those of --config.data.FIELD=VALUE, by default the photographs that come with the package; for a
    folder, --config.data.source=image_folder --config.data.name=DIR --config.data.image_size=256.

    Args:
      *overrides: The data, as ``--config.data.field=value``.
      features: File of the network (pt_inception-2015-12-05-6726825d.pth for FID), or its name, such as inception.
      output: The new file, which ends in .npz.
      scaling: How images are scaled to the network: pytorch-fid, clean-fid, tf1, dgm-eval or torch-fidelity-dinov2; as
        published for the network by default.
      split: ``"train"``, ``"eval"`` or ``"all"``.
      batch_size: Images at once.

    Raises:
      UserError: The data or the network cannot be read.
    """
    output = new_file(output, "--output", ending=".npz")
    if batch_size < 1:
        raise UserError(f"--batch_size must be a positive integer, got {batch_size}.")
    data = override_all(base_config(), overrides).data
    splits = load_splits(data)
    dataset = Joined(splits) if split == "all" else getattr(splits, split)
    if len(dataset) < 2:
        raise UserError(f"--split must have at least 2 images, which a covariance takes, got 1 of {dataset.name}.")
    network = FeatureNetwork.from_file(features, scaling)
    statistics = measured_statistics(dataset, network, data, split=split, batch_size=batch_size)
    if statistics.pool.count < 2:
        raise UserError(
            f"--split must have at least 2 images that can be read, got {statistics.pool.count} of {dataset.name}."
        )
    save_statistics(output, statistics)
    print(f"{output}: {statistics.pool.count} images of {dataset.name}; {network.how}")


def measured_statistics(
    dataset: ImageDataset,
    network: FeatureNetwork,
    data: ConfigDict,
    *,
    split: str,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Statistics:
    """Measure the features of all images of a dataset.

    Args:
      dataset: The images.
      network: The network.
      data: Config of the data.
      split: Name of the split, for the context.
      batch_size: Images at once.
      mesh: Devices that share each batch.

    Returns:
      The statistics, whose context says what was measured and how.
    """
    if has_clips(dataset):
        raise UserError(f"config.data must have images for statistics of features, got clips of {dataset.name}.")
    metric = FeatureMoments(network)
    result = evaluate(
        jax.tree_util.Partial(lambda batch: {}),
        evaluation_batches(dataset, min(batch_size, len(dataset))),
        [metric],
        progress=progress_of(len(dataset)),
        mesh=mesh,
    )
    context = {
        "dataset": dataset.name,
        "split": data.get(f"{split}_split", split),
        "images": int(result.collected["pool_count"]),
        "image_size": data.image_size,
        "crop": data.get("crop"),
        "features": network.how,
        "features_identity": network.identity,
        "fingerprint": fingerprint(dataset, _FINGERPRINTED_IMAGES),
    }
    return metric.statistics_of(result.collected, context)


def cached_statistics(
    dataset: ImageDataset,
    network: FeatureNetwork,
    data: ConfigDict,
    *,
    split: str,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Statistics:
    """Return the statistics of a dataset, measured at most once for the same images and features.

    Args:
      dataset: As all others, for :func:`measured_statistics`.
      network: The network.
      data: Config of the data.
      split: Name of the split.
      batch_size: Images at once.
      mesh: Devices that share each batch.
    """
    identity = "\n".join((fingerprint(dataset, _FINGERPRINTED_IMAGES), network.identity))
    directory = user_cache("statistics")
    file = directory and directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
    statistics = None
    if file and file.exists():
        with contextlib.suppress(UserError):  # Cut: it is measured again.
            statistics = load_statistics(file)
    # Caches of several machines may differ, and all processes have to measure together.
    if not true_in_all_processes(statistics is not None):
        if is_main_process():
            print(f"measuring the {len(dataset):,} images of {dataset.name}, once:", file=sys.stderr, flush=True)
        statistics = measured_statistics(dataset, network, data, split=split, batch_size=batch_size, mesh=mesh)
        if file and statistics.pool.count > 1:
            save_statistics(file, statistics)
    return dataclasses.replace(statistics, described=f"the {statistics.pool.count:,} images of {dataset.name}")
