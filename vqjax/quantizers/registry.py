"""Quantizers by their names in configs.

Arguments that are objects, such as the quantizer of each stage, are dictionaries with ``name`` and their own arguments.

Example:
  >>> defaults("fsq", levels=(8, 5, 5))["bound"]
  'asymmetric'
  >>> config = defaults("residual_vq", quantizer=dict(name="vq", num_codes=16), num_quantizers=2)
  >>> config["quantizer"]["commitment_weight"]
  0.25
  >>> build(**config).num_quantizers
  2
"""

from vqjax.functional.regularizers import Diversity, EntropyLoss, EntropyPenalty, Orthogonality, Region
from vqjax.quantizers.binary import BSQ, LFQ, BinaryMapper
from vqjax.quantizers.codebooks import CODEBOOKS, Replacement
from vqjax.quantizers.grouped import Grouped
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.scalar import FSP, FSQ, LatentQuantizer
from vqjax.quantizers.transforms import (
    ImplicitCodebook,
    LearnedAffine,
    LinearTransform,
    RunningAffine,
    VQBridge,
)
from vqjax.quantizers.vector import ProductVQ, SimVQ, VectorQuantizer
from vqjax.runtime.signature import Registry

# Arguments that are objects, and the names of what may be written there.
_PARTS: dict[str, Registry] = {
    "transform": Registry(
        {
            "linear": LinearTransform,
            "bridge": VQBridge,
            "learned_affine": LearnedAffine,
            "running_affine": RunningAffine,
        }
    ),
    "replace": Registry({"replacement": Replacement}),
    "regularizers": Registry(
        {
            "orthogonality": Orthogonality,
            "diversity": Diversity,
            "entropy_penalty": EntropyPenalty,
            "entropy_loss": EntropyLoss,
            "region": Region,
        }
    ),
    "implicit_codebooks": Registry({"implicit": ImplicitCodebook}),
}

QUANTIZERS = Registry(
    {
        "vq": VectorQuantizer,
        "product_vq": ProductVQ,
        "sim_vq": SimVQ,
        "ibq": IBQ,
        "residual_vq": Residual,
        "residual": Residual,  # by the name of the class, for stages that are not a VectorQuantizer
        "grouped": Grouped,
        "multi_scale_vq": MultiScaleVQ,
        "fsq": FSQ,
        "fsp": FSP,
        "latent": LatentQuantizer,
        "lfq": LFQ,
        "bsq": BSQ,
        "binary_mapper": BinaryMapper,
        "random_projection": RandomProjectionQuantizer,
    },
    _PARTS,
)
"""The quantizers by name."""

# Quantizers of quantizers: residual, grouped and multi-scale ones.
_PARTS["quantizer"] = QUANTIZERS
# A codebook has parts of its own.
_PARTS["codebook"] = Registry(CODEBOOKS, _PARTS)

defaults, build = QUANTIZERS.defaults, QUANTIZERS.build
