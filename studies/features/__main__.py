"""Feature networks: python -m studies.features [--data=FOLDER]

Trains a small classifier on CIFAR-10, found through TFDS_DATA_DIR, or on a folder of images with a subfolder for each
class in train/ and val/, such as Imagenette. Writes the weights of its feature network, and a record with its accuracy
on held-out images and the checksum of the file; a network that has a record is not trained again.
"""

import dataclasses
import sys
import time

from ml_collections import ConfigDict

from studies.common.command import check_positive
from studies.common.records import Results, Run, slug
from studies.features.training import Setting, train_network
from studies.features.weights import RECORDS, save_network
from vqjax.data import load_splits
from vqjax.errors import UserError
from vqjax.runtime.paths import local_path
from vqjax.training.cli import run


def main(*, data: str | None = None, epochs: int | None = None, records: str = "studies/features") -> None:
    """Train a feature network.

    Args:
      data: Folder of images, after which the network is named; CIFAR-10 by default.
      epochs: Passes over the training images; 8 by default.
      records: Directory of the weights and of results.jsonl.
    """
    records = local_path(records, "--records")
    if data is None:
        name, setting, opened = "cifar10", Setting(), {"source": "tfds", "name": "cifar10"}
    else:
        folder = local_path(data, "--data").resolve()
        if not folder.is_dir():
            raise UserError(f"--data must be a folder of images, got {data!r}; correct the path.")
        # Fewer images, and larger ones: more steps for each, and one more level.
        size = {"channels": (32, 64, 128, 128), "image_size": 64, "crop_padding": 8}
        name, setting = slug(folder.name), Setting(**size, batch_size=64, learning_rate=0.1)
        opened = {"source": "image_folder", "name": str(folder), "eval_split": "val"}
    if epochs is not None:
        check_positive(epochs=epochs)
        setting = dataclasses.replace(setting, epochs=epochs)
    results = Results(records / RECORDS)
    for training in results.unfinished([Run(name, dataclasses.asdict(setting))]):
        splits = load_splits(ConfigDict({**opened, "image_size": setting.image_size}))
        if splits.train.class_names is None:
            raise UserError(f"--data must have a subfolder for each class in train/ and val/, got {data!r}.")
        began = time.monotonic()
        network, measured = train_network(splits, setting)
        checksum = save_network(records / f"{name}.safetensors", network)
        results.add(training, measured | {"sha256": checksum}, time.monotonic() - began)
    (record,) = (record for record in results.records() if record.run == name)
    print(
        f"{records / name}.safetensors: {record.measured['accuracy']:.2%} of the held-out images classified correctly"
    )
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.features", "--data=data/imagenette")
