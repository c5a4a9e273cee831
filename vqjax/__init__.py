"""Vector quantization for JAX: quantizers for Flax models, trained through the rotation trick."""

from vqjax import codebook, estimators, metrics, nearest
from vqjax.errors import UserError
from vqjax.quantizers import QuantizerOutput, VectorQuantizer

__all__ = [
    "QuantizerOutput",
    "UserError",
    "VectorQuantizer",
    "codebook",
    "estimators",
    "metrics",
    "nearest",
]
