"""Reference statistics of a data set, for the Fréchet distance of anything from it."""

from pathlib import Path
from typing import Literal

import jax

from vqjax.data import Joined, evaluation_batches, fingerprint, load_splits
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.evaluation.fid import FeatureMoments
from vqjax.evaluation.statistics import save_statistics
from vqjax.runtime.paths import local_path
from vqjax.training.config import base_config, override_all
from vqjax.training.evaluate import progress_of


def write_statistics(
    *overrides: str,
    inception: str,
    output: str | Path,
    split: Literal["train", "eval", "all"] = "train",
    batch_size: int = 64,
) -> None:
    """Measure mean and covariance of Inception features, against which vqjax eval --statistics=FILE measures.

    The images are those of --config.data.FIELD=VALUE, by default the photographs that come with the package; for a
    folder, --config.data.source=image_folder --config.data.name=DIR --config.data.image_size=256.

    Args:
      *overrides: The data, as ``--config.data.field=value``.
      inception: File of the Inception network of pytorch-fid (pt_inception-2015-12-05-6726825d.pth).
      output: The new file, which ends in .npz.
      split: ``"train"``, ``"eval"`` or ``"all"``.
      batch_size: Images at once.

    Raises:
      UserError: The data or the network cannot be read.
    """
    output = local_path(output, "--output")
    if output.suffix != ".npz":
        raise UserError(f"--output must end in .npz, got {str(output)!r}.")
    if batch_size < 1:
        raise UserError(f"--batch_size must be a positive integer, got {batch_size}.")
    data = override_all(base_config(), overrides).data
    splits = load_splits(data)
    dataset = Joined(splits) if split == "all" else getattr(splits, split)
    metric = FeatureMoments.from_file(inception)
    result = evaluate(
        jax.tree_util.Partial(lambda batch: {}),
        evaluation_batches(dataset, min(batch_size, len(dataset))),
        [metric],
        progress=progress_of(len(dataset)),
    )
    moments = metric.moments_of(result.collected)
    context = {
        "dataset": dataset.name,
        "split": split,
        "images": moments.count,
        "image_size": data.image_size,
        "features": metric.how,
        "fingerprint": fingerprint(dataset),
    }
    save_statistics(output, moments, context)
    print(f"{output}: {moments.count} images of {dataset.name}, {metric.how}")
