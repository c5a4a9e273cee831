"""Data: sources of images and labels, the order in which training sees them, and feeds (input pipelines)."""

from vqjax.data.augment import augment, to_model_range, to_uint8
from vqjax.data.batches import batch_indices, evaluation_batches
from vqjax.data.dataset import Batch, Example, ImageDataset, Joined, Splits, UnreadableImage, origin
from vqjax.data.feeds import Feed, ResidentFeed, StreamedFeed, make_feed
from vqjax.data.reading import materialize
from vqjax.data.sources import load_splits
from vqjax.data.statistics import fingerprint

__all__ = [
    "Batch",
    "Example",
    "Feed",
    "ImageDataset",
    "Joined",
    "ResidentFeed",
    "Splits",
    "StreamedFeed",
    "UnreadableImage",
    "augment",
    "batch_indices",
    "evaluation_batches",
    "fingerprint",
    "load_splits",
    "make_feed",
    "materialize",
    "origin",
    "to_model_range",
    "to_uint8",
]
