"""Pure functions on arrays, for any library on top of JAX."""

from vqjax.functional import affine as affine
from vqjax.functional import beam_search as beam_search
from vqjax.functional import binary as binary
from vqjax.functional import codebook as codebook
from vqjax.functional import geometry as geometry
from vqjax.functional import kmeans as kmeans
from vqjax.functional import metrics as metrics
from vqjax.functional import mixed_radix as mixed_radix
from vqjax.functional import norms as norms
from vqjax.functional import pooling as pooling
from vqjax.functional import regularizers as regularizers
from vqjax.functional import resampling as resampling
from vqjax.functional import scalar as scalar
from vqjax.functional import search as search
