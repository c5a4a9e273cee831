"""Quantizers as flax.linen modules: thin holders of variables over the pure functions of this package."""

from vqjax.quantizers.binary_mapper import BinaryMapper
from vqjax.quantizers.ema import EMA
from vqjax.quantizers.finite_scalar import FSQ
from vqjax.quantizers.grouped import Grouped, GroupedResidualFSQ, GroupedResidualLFQ, GroupedResidualVQ, ProductVQ
from vqjax.quantizers.index_backpropagation import IBQ
from vqjax.quantizers.latent import LatentQuantizer
from vqjax.quantizers.linear import SimVQ
from vqjax.quantizers.lookup_free import BSQ, LFQ
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.perturbation import FSP
from vqjax.quantizers.pooling import MaxVecPool, SoftMaxVecPool
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.residual import ResidualSimVQ, ResidualVQ
from vqjax.quantizers.residual_finite_scalar import ResidualFSQ
from vqjax.quantizers.residual_lookup_free import ResidualLFQ
from vqjax.quantizers.transforms import ImplicitCodebook, LearnedAffine, LinearTransform, RunningAffine
from vqjax.quantizers.vector import VectorQuantizer

__all__ = [
    "BSQ",
    "EMA",
    "FSP",
    "FSQ",
    "IBQ",
    "LFQ",
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
]
