"""Pure functions on arrays, for any library on top of JAX.

Example:
  A training step of a vector quantizer with moving averages, without a module. These are the parts of
  :class:`vqjax.VectorQuantizer`, in the order in which it calls them.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from vqjax.estimators import rotation
  >>> def quantize(codebook, z):
  ...   indices = nearest_codes(z, codebook.codes)
  ...   codes = codebook.codes[indices]
  ...   commitment = jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2)
  ...   batch = assign(z, indices, num_codes=len(codebook.codes))
  ...   return rotation(z, codes), 0.25 * commitment, ema_update(codebook, batch, decay=0.99)
  >>> z = jax.random.normal(jax.random.key(0), (64, 4))
  >>> codebook = init_codebook(jax.random.normal(jax.random.key(1), (16, 4)))
  >>> quantized, loss, codebook = jax.jit(quantize)(codebook, z)

  The module does the same to the same codes:

  >>> from vqjax import VectorQuantizer
  >>> vq = VectorQuantizer(num_codes=16, codebook_init=lambda *_: jax.random.normal(jax.random.key(1), (16, 4)))
  >>> out, variables = vq.apply(vq.init(jax.random.key(2), z), z, train=True, mutable=["codebook"])
  >>> bool(jnp.allclose(out.quantized, quantized)), bool(jnp.allclose(out.loss, loss))
  (True, True)
  >>> bool(jnp.allclose(variables["codebook"]["codes"], codebook.codes))
  True
"""

from vqjax.functional.affine import FeatureStatistics as FeatureStatistics
from vqjax.functional.affine import feature_statistics as feature_statistics
from vqjax.functional.affine import match_statistics as match_statistics
from vqjax.functional.affine import update_statistics as update_statistics
from vqjax.functional.beam_search import beam_search as beam_search
from vqjax.functional.binary import bit_entropies as bit_entropies
from vqjax.functional.binary import independent_entropy as independent_entropy
from vqjax.functional.binary import log_probability as log_probability
from vqjax.functional.binary import product_distribution as product_distribution
from vqjax.functional.binary import to_signs as to_signs
from vqjax.functional.codebook import Assignment as Assignment
from vqjax.functional.codebook import Codebook as Codebook
from vqjax.functional.codebook import assign as assign
from vqjax.functional.codebook import dead_codes as dead_codes
from vqjax.functional.codebook import ema_update as ema_update
from vqjax.functional.codebook import init_codebook as init_codebook
from vqjax.functional.codebook import replace_codes as replace_codes
from vqjax.functional.codebook import sample_latents as sample_latents
from vqjax.functional.codebook import unused_codes as unused_codes
from vqjax.functional.codebook import update_idle as update_idle
from vqjax.functional.codebook import update_relative_usage as update_relative_usage
from vqjax.functional.geometry import norm_ratio as norm_ratio
from vqjax.functional.kmeans import kmeans as kmeans
from vqjax.functional.kmeans import kmeans_plus_plus as kmeans_plus_plus
from vqjax.functional.metrics import geometry_statistics as geometry_statistics
from vqjax.functional.metrics import index_statistics as index_statistics
from vqjax.functional.metrics import masked_mean as masked_mean
from vqjax.functional.metrics import perplexity as perplexity
from vqjax.functional.metrics import usage as usage
from vqjax.functional.mixed_radix import from_digits as from_digits
from vqjax.functional.mixed_radix import to_digits as to_digits
from vqjax.functional.mixed_radix import to_index as to_index
from vqjax.functional.mixed_radix import to_levels as to_levels
from vqjax.functional.norms import length_and_direction as length_and_direction
from vqjax.functional.norms import normalize as normalize
from vqjax.functional.norms import normalize_layer as normalize_layer
from vqjax.functional.norms import normalize_rms as normalize_rms
from vqjax.functional.pooling import max_vector_pool as max_vector_pool
from vqjax.functional.pooling import softmax_vector_pool as softmax_vector_pool
from vqjax.functional.regularizers import Diversity as Diversity
from vqjax.functional.regularizers import EntropyLoss as EntropyLoss
from vqjax.functional.regularizers import EntropyPenalty as EntropyPenalty
from vqjax.functional.regularizers import Orthogonality as Orthogonality
from vqjax.functional.regularizers import Region as Region
from vqjax.functional.regularizers import Regularizer as Regularizer
from vqjax.functional.regularizers import assignment_entropies as assignment_entropies
from vqjax.functional.regularizers import orthogonality as orthogonality
from vqjax.functional.regularizers import region_targets as region_targets
from vqjax.functional.resampling import adaptive_average_pool as adaptive_average_pool
from vqjax.functional.resampling import interpolate_linearly as interpolate_linearly
from vqjax.functional.scalar import bin_centers as bin_centers
from vqjax.functional.scalar import bins as bins
from vqjax.functional.scalar import bounded as bounded
from vqjax.functional.scalar import level_values as level_values
from vqjax.functional.scalar import moments_loss as moments_loss
from vqjax.functional.scalar import nearest_levels as nearest_levels
from vqjax.functional.scalar import perturbed as perturbed
from vqjax.functional.scalar import rounded_levels as rounded_levels
from vqjax.functional.scalar import soft_clamp as soft_clamp
from vqjax.functional.scalar import values_at as values_at
from vqjax.functional.search import nearest_codes as nearest_codes
from vqjax.functional.search import nearest_k_codes as nearest_k_codes
from vqjax.functional.search import nearest_k_own_codes as nearest_k_own_codes
from vqjax.functional.search import nearest_own_codes as nearest_own_codes
from vqjax.functional.search import sample_codes as sample_codes
from vqjax.functional.search import similarity as similarity
