"""Duplicates of training images among the held-out ones, which make an evaluation look better than it is."""

import hashlib

import numpy as np
from absl import logging

from vqjax.data.dataset import ImageDataset, Splits

_NAMED_DUPLICATES = 5

DIGESTED_BYTES = 4096
"""What is read from either end: reading all of a million files would take hours."""


def report_duplicates(splits: Splits) -> int:
    """Log how many held-out images are exact duplicates of training images, and name the first of them.

    The stored content is compared: the bytes of files, the pixels of arrays. Sources without ``digests`` are skipped.

    Args:
      splits: The training and the held-out images.

    Returns:
      The number of held-out images that are duplicates.

    Example:
      >>> from vqjax.data.arrays import ArrayDataset
      >>> train = ArrayDataset("train", np.zeros((3, 8, 8, 3), np.uint8), image_size=8)
      >>> held_out = ArrayDataset("eval", np.eye(8, dtype=np.uint8)[None], image_size=8)
      >>> report_duplicates(Splits(train, held_out)), report_duplicates(Splits(train, train))
      (0, 3)
    """
    train, held_out = splits
    if not all(hasattr(dataset, "digests") for dataset in splits):
        return 0
    of_train, of_held_out = train.digests(), held_out.digests()
    common = np.intersect1d(of_train, of_held_out)
    originals = {_checksum(train, row): row for row in _rows(of_train, common)}
    pairs = [(row, originals.get(_checksum(held_out, row))) for row in _rows(of_held_out, common)]
    pairs = [(row, original) for row, original in pairs if original is not None]
    if pairs:
        named = ", ".join(f"{held_out.origin(row)} is {train.origin(i)}" for row, i in pairs[:_NAMED_DUPLICATES])
        logging.warning(
            "%s: %d of its %d images are exact duplicates of training images (%s%s), so metrics on them are too "
            "optimistic; remove the duplicates from one of the splits",
            *(held_out.name, len(pairs), len(held_out), named, ", ..." if len(pairs) > _NAMED_DUPLICATES else ""),
        )
    return len(pairs)


def digest(head: bytes, tail: bytes, length: int) -> int:
    """Return a checksum of 64 bits of a content that is not read as a whole.

    Args:
      head: Its first ``DIGESTED_BYTES``, or all of it.
      tail: Its last ``DIGESTED_BYTES``, or all of it.
      length: Its number of bytes.

    Example:
      >>> digest(b"abc", b"abc", 3) == digest(b"abc", b"abc", 4)
      False
    """
    return int.from_bytes(hashlib.blake2b(head + tail + length.to_bytes(8), digest_size=8).digest())


def _rows(digests: np.ndarray, wanted: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isin(digests, wanted)).tolist()


def _checksum(dataset: ImageDataset, row: int) -> bytes:
    return hashlib.blake2b(dataset.content(row)).digest()
