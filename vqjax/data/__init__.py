"""Images: where they come from, in which order training sees them, and how they reach the devices."""

from vqjax.data.augment import augment, to_model_range, to_uint8
from vqjax.data.dataset import ImageDataset, Splits, UnreadableImage, materialize
from vqjax.data.evaluation_batches import evaluation_batches
from vqjax.data.feed import Feed, ResidentFeed, StreamedFeed, make_feed
from vqjax.data.fingerprint import fingerprint
from vqjax.data.load import load_splits
from vqjax.data.order import batch_indices

__all__ = [
    "Feed",
    "ImageDataset",
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
    "to_model_range",
    "to_uint8",
]
