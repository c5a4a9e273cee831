"""Examples of a dataset as arrays in the user's cache, where reading them all again would take seconds."""

import contextlib
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import logging

from vqjax.data.dataset import Example, ImageDataset
from vqjax.runtime.cache import user_cache
from vqjax.runtime.files import atomic_file

_MOST_BYTES = 4 * 2**30
_COMPARED = 3
# What decodes and scales images.
_PACKAGES = ("vqjax", "pillow", "numpy")


def read_decoded(dataset: ImageDataset) -> Example | None:
    """Return all examples of a dataset as an earlier call of :func:`write_decoded` has kept them.

    Args:
      dataset: The examples; those of a dataset without ``stamp`` are not kept.

    Returns:
      One read-only array per entry, with a row for each example; None if the cache does not have them.
    """
    file = _file(dataset)
    if file is None:
        return None
    try:
        records = np.load(file, mmap_mode="r", allow_pickle=False)
        examples = {name: records[name] for name in records.dtype.names}
        # A stamp may miss a change, and the file may be damaged.
        for index in np.unique(np.linspace(0, len(dataset) - 1, _COMPARED).astype(int)).tolist():
            example = dataset[index]
            if example.keys() != examples.keys():
                return None
            if not all(np.array_equal(example[name], rows[index]) for name, rows in examples.items()):
                return None
        os.utime(file)
    except Exception:  # a damaged file raises a dozen unrelated types
        return None
    return examples if len(records) == len(dataset) else None


def write_decoded(dataset: ImageDataset, examples: Example) -> None:
    """Keep all examples of a dataset for :func:`read_decoded`, in the place of those that were used longest ago.

    Args:
      dataset: Where they come from; nothing is kept of a dataset without ``stamp``.
      examples: One array per entry, with a row for each example.
    """
    file = _file(dataset)
    if file is None:
        return
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in sorted(examples.items())]
    records = np.empty(len(dataset), kinds)
    if records.nbytes > _MOST_BYTES:
        return
    for name, values in examples.items():
        records[name] = values
    try:
        _make_room(file.parent, records.nbytes)
        with atomic_file(file) as content:
            np.save(content, records, allow_pickle=False)
    except OSError as error:
        logging.info("the decoded images of %s are not kept (%s)", dataset.name, error)


def _file(dataset: ImageDataset) -> Path | None:
    stamp = dataset.stamp() if hasattr(dataset, "stamp") else None
    directory = None if stamp is None else user_cache("decoded")
    if directory is None:
        return None
    key = repr((stamp, len(dataset), [version(package) for package in _PACKAGES]))
    return directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def _make_room(directory: Path, needed: int) -> None:
    """Remove what was used longest ago, until there is room for a number of bytes."""
    found = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(directory))
    total = needed + sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= _MOST_BYTES:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
