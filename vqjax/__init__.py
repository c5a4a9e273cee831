"""Vector quantization for JAX: quantizers for Flax models, trained through the rotation trick."""

from vqjax import codebook, estimators, kmeans, loss_weights, metrics, nearest, regularizers, replacement
from vqjax.errors import UserError
from vqjax.quantizers import EMA, QuantizerOutput, VectorQuantizer

__all__ = [
    "EMA",
    "QuantizerOutput",
    "UserError",
    "VectorQuantizer",
    "codebook",
    "estimators",
    "kmeans",
    "loss_weights",
    "metrics",
    "nearest",
    "regularizers",
    "replacement",
]
