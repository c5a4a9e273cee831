"""Quantizers as flax.linen modules: thin holders of variables over the pure functions of this package."""

from vqjax.quantizers.ema import EMA
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.transforms import ImplicitCodebook, LearnedAffine, LinearTransform, RunningAffine
from vqjax.quantizers.vector import VectorQuantizer

__all__ = [
    "EMA",
    "ImplicitCodebook",
    "LearnedAffine",
    "LinearTransform",
    "QuantizerOutput",
    "RunningAffine",
    "VectorQuantizer",
]
