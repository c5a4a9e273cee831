"""The door: every class of vector-quantize-pytorch by its name."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vqjax.errors import UserError, did_you_mean
from vqjax.importing.state_dict import read_state_dict, takes_config
from vqjax.importing.vector_quantize_pytorch.arguments import Import
from vqjax.importing.vector_quantize_pytorch.codebooks import random_projection, sim_vq, vector_quantize
from vqjax.importing.vector_quantize_pytorch.composites import (
    grouped,
    hierarchical_vq,
    residual_fsq,
    residual_lfq,
    residual_sim_vq,
    residual_vq,
)
from vqjax.importing.vector_quantize_pytorch.grids import binary_mapper, fsp, fsq, latent_quantize, lfq
from vqjax.quantizers.base import Quantizer

CLASSES: dict[str, Import] = {
    "VectorQuantize": vector_quantize,
    "ResidualVQ": residual_vq,
    "GroupedResidualVQ": grouped(residual_vq),
    "SimVQ": sim_vq,
    "ResidualSimVQ": residual_sim_vq,
    "RandomProjectionQuantizer": random_projection,
    "HierarchicalVQ": hierarchical_vq,
    "FSQ": fsq,
    "ResidualFSQ": residual_fsq,
    "GroupedResidualFSQ": grouped(residual_fsq),
    "FSP": fsp,
    "LFQ": lfq,
    "ResidualLFQ": residual_lfq,
    "GroupedResidualLFQ": grouped(residual_lfq),
    "LatentQuantize": latent_quantize,
    "BinaryMapper": binary_mapper,
}
"""How each class is imported, by its name there."""


@takes_config
def vector_quantize_pytorch(
    arrays: Mapping[str, Any] | str | os.PathLike[str], config: Mapping[str, Any], class_name: str = "VectorQuantize"
) -> tuple[Quantizer, dict[str, Any]]:
    """Turn a trained module of vector-quantize-pytorch into a quantizer and its variables.

    Indices, codes and projections are the same numbers, and training continues from the same moving averages: the
    relative use of a code starts at its count over the average count.

    =====================================  ==========================================================================
    ``class_name`` there                   here
    =====================================  ==========================================================================
    ``VectorQuantize``                     ``VectorQuantizer``
    ``ResidualVQ``, ``ResidualSimVQ``      ``Residual(VectorQuantizer(...), n, gradient="per_stage")``, ``SimVQ``
    ``ResidualFSQ``, ``ResidualLFQ``       ``Residual(FSQ(...), n, gradient="per_stage")``, ``LFQ`` or ``BSQ``
    ``GroupedResidualVQ``, ``...FSQ``,     ``Grouped(Residual(...), groups)``; groups are an axis of the indices
    ``...LFQ``                             after the leading ones, not before
    ``SimVQ``, ``FSQ``, ``FSP``,           the same names
    ``BinaryMapper``
    ``LFQ``                                ``LFQ``; with ``spherical=True`` ``BSQ``
    ``LatentQuantize``                     ``LatentQuantizer``
    ``RandomProjectionQuantizer``          the same name, of one codebook: several lie behind a linear layer there
    ``HierarchicalVQ``                     ``MultiScaleVQ``; the indices of all scales are one sequence
    =====================================  ==========================================================================

    The options of ``VectorQuantize`` (and its defaults), with which residual quantizers are made as well:

    =================================================  ==============================================================
    ``VectorQuantize``                                 ``VectorQuantizer``
    =================================================  ==============================================================
    ``codebook_size``                                  ``num_codes``
    ``dim``                                            none: taken from the input
    ``codebook_dim`` (``dim``)                         ``codebook_dim`` if ``heads * codebook_dim != dim``
    ``heads`` (1)                                      ``heads``
    ``separate_codebook_per_head=True``                ``separate_codebooks=True``, with at least two heads
    ``use_cosine_sim=True``                            ``distance="cosine"``
    ``decay`` (0.8), ``eps`` (1e-5)                    ``codebook=EMACodebook(decay=0.8, smoothing=1e-5)``
    ``learnable_codebook=True``                        ``codebook=GradientCodebook()``
    ``freeze_codebook=True``                           ``codebook=FrozenCodebook()``
    ``commitment_weight`` (1.0)                        ``commitment_weight``; also ``GradientCodebook(weight=1.0)``
    ``rotation_trick=True`` (as by default)            ``estimator="rotation"``
    ``rotation_trick=False``                           ``estimator="straight_through"``
    ``threshold_ema_dead_code`` (0), a count           ``replace=Replacement(below=...)``, its ratio to the average
                                                       count in ``arrays``
    ``stochastic_sample_codes=True``                   ``sampling_temperature=1.0``, the ``sample_codebook_temp``
    ``affine_param=True``                              ``transform=RunningAffine()``
    ``affine_param_batch_decay`` (0.99)                ``RunningAffine(token_decay=0.99)``
    ``affine_param_codebook_decay`` (0.9)              ``RunningAffine(code_decay=0.9)``
    ``accept_image_fmap``, ``channel_last=False``      none: channels are always last
    ``layernorm_after_project_in``, ``vq_bridge``      not imported
    =================================================  ==============================================================

    Evaluation gives the same codes and indices. In training, these differ: there is a loss in evaluation too; learned
    codes have a loss of their own beside the commitment; stages are dropped per example, not per batch; entropies of
    ``LFQ`` are exact (``clone(smallest_probability=1e-5)`` for theirs); noise of ``FSQ`` is half a step at most; the
    loss of ``LatentQuantize`` is measured between its projections; ``BinaryMapper`` draws in training alone.

    Args:
      arrays: The state dict, ``{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}``, or the
        path of a ``.safetensors`` file; ``{}`` for a module without any.
      config: The arguments with which the module was constructed, by name.
      class_name: Name of its class.

    Returns:
      The quantizer to continue with, and its variables, copies of the arrays.

    Raises:
      UserError: The class or an argument is unknown or not imported; entries are missing, surplus, of the wrong shape
        or not finite; the codebook is that of the other distance, or was never initialized.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> codes = np.random.default_rng(0).normal(size=(1, 16, 4)).astype(np.float32)
      >>> arrays = {"_codebook.embed": codes, "_codebook.embed_avg": codes}
      >>> arrays |= {"_codebook.cluster_size": np.ones((1, 16), np.float32), "_codebook.initted": np.array(True)}
      >>> vq, variables = vector_quantize_pytorch(arrays, {"dim": 4, "codebook_size": 16, "decay": 0.9})
      >>> vq.apply(variables, jnp.array(codes[0, 3:5]), method="encode").tolist()
      [3, 4]
      >>> fsq, variables = vector_quantize_pytorch({}, {"levels": [8, 5, 5]}, "FSQ")
      >>> fsq.num_codes, variables
      (200, {})

    Source: vector-quantize-pytorch 1.32 (arguments, and names and shapes of its state dict).
    """
    if not isinstance(class_name, str) or class_name not in CLASSES:
        raise UserError(
            f"class_name must be a class of vector-quantize-pytorch that is imported, got {class_name!r}; "
            f"{did_you_mean(str(class_name), CLASSES)}"
        )
    quantizer, variables = CLASSES[class_name](read_state_dict(arrays), config, "")
    return quantizer, jax.tree.map(jnp.array, variables)
