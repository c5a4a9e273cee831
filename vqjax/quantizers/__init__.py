"""Quantizers: Flax modules over :mod:`vqjax.functional`."""

from vqjax.quantizers.base import Quantizer as Quantizer
from vqjax.quantizers.base import QuantizerOutput as QuantizerOutput
from vqjax.quantizers.binary import BSQ as BSQ
from vqjax.quantizers.binary import LFQ as LFQ
from vqjax.quantizers.binary import BinaryMapper as BinaryMapper
from vqjax.quantizers.codebooks import EMACodebook as EMACodebook
from vqjax.quantizers.codebooks import FrozenCodebook as FrozenCodebook
from vqjax.quantizers.codebooks import GradientCodebook as GradientCodebook
from vqjax.quantizers.codebooks import Replacement as Replacement
from vqjax.quantizers.grouped import Grouped as Grouped
from vqjax.quantizers.ibq import IBQ as IBQ
from vqjax.quantizers.multi_scale import MultiScaleVQ as MultiScaleVQ
from vqjax.quantizers.random_projection import RandomProjectionQuantizer as RandomProjectionQuantizer
from vqjax.quantizers.residual import Residual as Residual
from vqjax.quantizers.residual import ResidualVQ as ResidualVQ
from vqjax.quantizers.scalar import FSP as FSP
from vqjax.quantizers.scalar import FSQ as FSQ
from vqjax.quantizers.scalar import LatentQuantizer as LatentQuantizer
from vqjax.quantizers.transforms import ImplicitCodebook as ImplicitCodebook
from vqjax.quantizers.transforms import LearnedAffine as LearnedAffine
from vqjax.quantizers.transforms import LinearTransform as LinearTransform
from vqjax.quantizers.transforms import RunningAffine as RunningAffine
from vqjax.quantizers.vector import ProductVQ as ProductVQ
from vqjax.quantizers.vector import SimVQ as SimVQ
from vqjax.quantizers.vector import VectorQuantizer as VectorQuantizer
