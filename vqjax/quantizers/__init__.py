"""Quantizers as flax.linen modules: thin holders of variables over the pure functions of this package."""

from vqjax.quantizers.base import QuantizerOutput
from vqjax.quantizers.binary import BSQ, LFQ, BinaryMapper
from vqjax.quantizers.codebooks import EMA
from vqjax.quantizers.grouped import Grouped, GroupedResidualFSQ, GroupedResidualLFQ, GroupedResidualVQ, ProductVQ
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.pooling import MaxVecPool, SoftMaxVecPool
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.registry import QUANTIZERS, build, defaults
from vqjax.quantizers.residual import ResidualSimVQ, ResidualVQ
from vqjax.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from vqjax.quantizers.scalar import FSP, FSQ, LatentQuantizer
from vqjax.quantizers.transforms import ImplicitCodebook, LearnedAffine, LinearTransform, RunningAffine
from vqjax.quantizers.vector import SimVQ, VectorQuantizer

__all__ = [
    "BSQ",
    "EMA",
    "FSP",
    "FSQ",
    "IBQ",
    "LFQ",
    "QUANTIZERS",
    "BinaryMapper",
    "Grouped",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "ImplicitCodebook",
    "LatentQuantizer",
    "LearnedAffine",
    "LinearTransform",
    "MaxVecPool",
    "MultiScaleVQ",
    "ProductVQ",
    "QuantizerOutput",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "RunningAffine",
    "SimVQ",
    "SoftMaxVecPool",
    "VectorQuantizer",
    "build",
    "defaults",
]
