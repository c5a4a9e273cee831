"""Quantizers as flax.linen modules: thin holders of variables over the pure functions of this package."""

from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.vector import VectorQuantizer

__all__ = ["QuantizerOutput", "VectorQuantizer"]
