r"""Gradient estimators: what takes the place of the derivative of quantization, which is zero almost everywhere.

An estimator is a function ``(z, q) -> q'`` of latents ``z`` and the codes ``q`` assigned to them, computed in float32.
Estimators differ in the gradient; with :math:`u = z/|z|`, :math:`\hat q = q/|q|` and :math:`d = (q-z)/|q-z|`:

============================ ============================================================================
value is ``q``               Jacobian with respect to ``z``, held constant
============================ ============================================================================
straight_through             :math:`I`
dynamic_straight_through     :math:`w I`, :math:`w \le 1` by the distance to the code
rotation                     :math:`(|q|/|z|)\, R`, with the rotation :math:`R u = \hat q`
rotation_unscaled            :math:`R`
rotation_normalized          :math:`(|q|/|z|)\, R\,(I - u u^T)`
rotation_about_mean          :math:`\lambda R` of :math:`z - E[z]` and :math:`q - E[q]`
tangential_rotation          :math:`R\,(I - u u^T) + u u^T`
tangential_rotation_rescaled :math:`(|q|/|z|)\, R\,(I - u u^T) + u u^T`
reflection                   :math:`(|q|/|z|)\, H`, with the reflection :math:`H u = \hat q`
diveq_detached               :math:`I - d d^T`; with respect to ``q``: :math:`d d^T`
============================ ============================================================================

If a rotation or reflection does not exist (a vector shorter than 1e-6, an antipodal pair, a parallel pair for the
reflection), it is replaced by the identity, which is the straight-through gradient, so every gradient is finite.
:func:`scaled_rotation` and :func:`clip_norm_ratio` make further estimators.

Estimators that draw noise change the value in training too. Their gradient also reaches the codes; with the unit noise
:math:`\hat n`, and :math:`\hat v` the direction of the noisy difference (noise held constant throughout):

===================== ================================== ==================================
value is near ``q``   with respect to ``z``              with respect to the codes
===================== ================================== ==================================
diveq                 :math:`I - \hat v d^T`             :math:`\hat v d^T`
space_filling_diveq   :math:`I - \sum \hat v_j d_j^T`    :math:`\hat v_j d_j^T`, both ends
noise_substitution    :math:`I - \hat n d^T`             :math:`\hat n d^T`
gumbel_softmax        that of :math:`\sum_k p_k e_k`     that of :math:`\sum_k p_k e_k`
===================== ================================== ==================================

The terms of ``space_filling_diveq`` are weighted by the position on the line. ``gumbel_softmax`` and
``space_filling_diveq`` choose the codes themselves; the value of the former is exactly a code. With ``train=False`` the
quantizer replaces all four by the nearest code and the straight-through gradient.

:func:`index_backpropagation`, the estimator of :class:`vqjax.IBQ`, chooses the code of the largest inner product.
:func:`exact_gradient` and :func:`hessian_gradient` are not of this form: they need the decoder's loss.

A custom estimator is any such callable. It may name the keyword-only parameters ``key``, ``indices``, ``num_codes``,
``mask`` and ``axis_name``, which the quantizer passes. If it takes ``codes`` instead of ``q``, it receives the codebook
and returns ``(q', indices)``. Set other parameters with ``functools.partial``.
"""

from vqjax.estimators.clipping import clip_norm_ratio as clip_norm_ratio
from vqjax.estimators.decoder_gradients import DecoderLoss as DecoderLoss
from vqjax.estimators.decoder_gradients import exact_gradient as exact_gradient
from vqjax.estimators.decoder_gradients import hessian_gradient as hessian_gradient
from vqjax.estimators.diveq import diveq as diveq
from vqjax.estimators.diveq import diveq_detached as diveq_detached
from vqjax.estimators.diveq import noise_substitution as noise_substitution
from vqjax.estimators.diveq import space_filling_diveq as space_filling_diveq
from vqjax.estimators.gumbel_softmax import gumbel_softmax as gumbel_softmax
from vqjax.estimators.index_backpropagation import index_backpropagation as index_backpropagation
from vqjax.estimators.index_backpropagation import largest_inner_product as largest_inner_product
from vqjax.estimators.jacobian import Estimator as Estimator
from vqjax.estimators.registry import ESTIMATORS as ESTIMATORS
from vqjax.estimators.registry import chooses_codes as chooses_codes
from vqjax.estimators.registry import get_estimator as get_estimator
from vqjax.estimators.registry import keyword_names as keyword_names
from vqjax.estimators.rotation import reflection as reflection
from vqjax.estimators.rotation import rotation as rotation
from vqjax.estimators.rotation import rotation_about_mean as rotation_about_mean
from vqjax.estimators.rotation import rotation_normalized as rotation_normalized
from vqjax.estimators.rotation import rotation_unscaled as rotation_unscaled
from vqjax.estimators.rotation import scaled_rotation as scaled_rotation
from vqjax.estimators.rotation import tangential_rotation as tangential_rotation
from vqjax.estimators.rotation import tangential_rotation_rescaled as tangential_rotation_rescaled
from vqjax.estimators.straight_through import dynamic_straight_through as dynamic_straight_through
from vqjax.estimators.straight_through import straight_through as straight_through
