"""The vector quantizer: one codebook, one nearest code per token."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators import Estimator, chooses_codes, get_estimator, requirements
from vqjax.metrics import geometry, perplexity, usage
from vqjax.nearest import nearest_codes, nearest_k_codes, nearest_k_own_codes, nearest_own_codes
from vqjax.quantizers.checks import check_arguments, check_given, check_input, is_count
from vqjax.quantizers.codes import codes_at, codes_of
from vqjax.quantizers.devices import mapped_axis
from vqjax.quantizers.ema import EMA
from vqjax.quantizers.learning import (
    assigned,
    count_dead,
    draw_keys,
    learn,
    per_group,
    require_mutable,
    start_from_clusters,
)
from vqjax.quantizers.lookup import Lookup, look_up
from vqjax.quantizers.losses import distance, losses
from vqjax.quantizers.masking import decode_valid, minus_one_where_masked, zero_where_masked
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.spaces import lookup_space, mask_of_heads, output_space
from vqjax.quantizers.variables import check_features, create_variables, per_codebook, stored_codes
from vqjax.regularizers import Regularizer

Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None
Condition = Float[Array, "*batch features"] | None

# Uniform with variance 1/dim, so that a code's expected squared length is one for any dim and number of codes.
unit_scale_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)


class VectorQuantizer(nn.Module):
    r"""Replaces each vector by its nearest code, and lets the gradient cross by an estimator.

    The code :math:`q = e_i,\ i = \arg\min_k |z - e_k|^2` is the output bit for bit; its gradient with respect to
    ``z`` is the estimator's (by default the rotation trick). The loss is

    .. math:: \beta\, |z - \mathrm{sg}(q)|^2 + \alpha\, |\mathrm{sg}(z) - q|^2

    averaged over unmasked tokens and dimensions, where :math:`\alpha = 0` unless ``codebook_update="gradient"``.
    ``dim`` is taken from the last axis of the input; all other axes are batch axes. Losses and lookup live in the
    space of the codes: after projection, split into heads and, for cosine, normalization.

    Variables:
      The collection ``codebook`` holds, in float32 under any input dtype, ``codes``, ``counts``, ``sums`` and
      ``usage`` (see :class:`vqjax.codebook.Codebook`). With ``codebook_update="gradient"`` the codes are
      ``params["codes"] + codebook["offsets"]``: the optimizer moves the first, and k-means and dead-code
      replacement, which are no gradient steps, write the second. With ``"none"`` there are only ``codes``. With
      ``separate_codebooks`` each of these has a leading axis of heads. ``params`` holds the projections too
      (``project_in_kernel`` and so on), and the codebook transform's own variables are under its name.

    State and randomness:
      ``train=False`` changes nothing. ``train=True`` looks codes up first and updates the collection ``codebook``
      afterwards, so it has to be mutable. Random numbers come from the stream ``quantizer`` (initial codes,
      k-means, replacement, sampling, noisy estimators). Under ``jit`` over a global batch the statistics are global.

    Attributes:
      num_codes: Size of the codebook.
      metric: ``"euclidean"``, or ``"cosine"``: tokens and codes are scaled to unit length before the lookup, and
        output, estimator, losses and averages live on the unit sphere.
      estimator: A name from :data:`vqjax.estimators.ESTIMATORS` or a callable ``(z, q) -> q'``. Those that draw
        noise do so in training only.
      codebook_update: ``"ema"`` (moving averages; :class:`EMA` for its settings), ``"gradient"`` (learned through
        the codebook loss) or ``"none"`` (frozen).
      decay: Of the moving averages per batch, in ``[0, 1)``.
      commitment_weight: :math:`\beta`.
      codebook_weight: :math:`\alpha`, 1 by default; only where codes or their transform are learned by gradient.
      dead_code_threshold: A code is dead while its moving-average use is below this fraction of the average use
        (tokens / codes).
      replace_dead_codes: Replace dead codes by random tokens of the batch after each update.
      replace_unused_after: Replace codes that no token has chosen for so many training batches.
      codebook_init: Initializer of the ``[num_codes, dim]`` codes.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Not needed, and
        wrong, under plain ``jit``. Pass every device the same ``quantizer`` key; average gradients over the axis.
      code_dim: Project to this many features per head before the lookup, and back after it.
      heads: Parts into which the features are split; each is a token of its own. Indices get a last axis of heads.
      separate_codebooks: One codebook per head instead of one for all.
      sampling_temperature: Above 0, indices are drawn in training from ``softmax(similarity / temperature)``
        (:func:`vqjax.sampling.sample_codes`) instead of the nearest.
      synchronization: Weight with which the task's gradient reaches the codes as well (:math:`\nu` of Huh et al.,
        2023, eq. 21); only where codes or their transform are learned by gradient.
      codebook_transform: Module that maps the stored codes to those that are looked up, see
        :mod:`vqjax.quantizers.transforms`.
      regularizers: Added to the loss, see :mod:`vqjax.regularizers`.
      codebook_shards: How many devices hold a part of the codebook each, where it is sharded along its first axis
        (``PartitionSpec("codes")`` for the collection ``codebook``, under ``jit``, as argument and in
        ``out_shardings``): each searches its own part, and nothing of the codebook's size crosses devices. Divides
        ``num_codes``. The result is the same for any number.
      search: How the nearest codes are found: ``"chunks"``, or ``"hopper"``, a kernel for GPUs of that generation
        (:mod:`vqjax.hopper_search`); it takes tokens and codes of one device, as ``shard_map`` gives them.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = VectorQuantizer(num_codes=16)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
      >>> variables = variables | updates
      >>> out.quantized.shape, out.indices.shape, sorted(variables["codebook"])
      ((2, 8, 8, 4), (2, 8, 8), ['codes', 'counts', 'sums', 'usage'])
      >>> indices = vq.apply(variables, z, method="encode")
      >>> vectors = vq.apply(variables, indices, method="decode")
      >>> bool((vectors == vq.apply(variables, z).quantized).all())
      True

    Source: van den Oord et al., 2017 (arXiv 1711.00937); Fifty et al., ICLR 2025 (arXiv 2410.06424).
    """

    num_codes: int
    metric: Literal["euclidean", "cosine"] = "euclidean"
    estimator: str | Estimator = "rotation"
    codebook_update: Literal["ema", "gradient", "none"] | EMA = "ema"
    decay: float = 0.99
    commitment_weight: float = 0.25
    codebook_weight: float | None = None
    dead_code_threshold: float = 0.01
    replace_dead_codes: bool = False
    replace_unused_after: int | None = None
    codebook_init: Callable = unit_scale_uniform
    axis_name: str | None = None
    code_dim: int | None = None
    heads: int = 1
    separate_codebooks: bool = False
    sampling_temperature: float = 0.0
    synchronization: float = 0.0
    codebook_transform: nn.Module | None = None
    regularizers: tuple[Regularizer, ...] = ()
    codebook_shards: int = 1
    search: Literal["chunks", "hopper"] = "chunks"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self)

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks: one, or one per head."""
        return self.heads if self.separate_codebooks else 1

    @nn.compact
    def __call__(
        self,
        z: Vectors,
        mask: Mask = None,
        train: bool = False,
        *,
        condition: Condition = None,
        update_weights: Float[Array, "*heads codes"] | None = None,
    ) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no
            gradient, and come back as zero vectors with index -1.
          train: Update the codebook after the lookup.
          condition: One vector per token, for a transform that gives each token a codebook of its own.
          update_weights: Weight of each code's moving averages, in [0, 1]; 0 freezes a code.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``commitment_loss`` and
          ``codebook_loss`` (unweighted; equal in value, different in gradient), ``perplexity`` and ``usage`` of
          this batch, ``norm_ratio`` (mean |q|/|z|), ``angle`` (mean, radians), unless the codebook is frozen
          ``dead_codes`` (number, by the moving average, before any replacement), and each regularizer by its name.

        Raises:
          UserError: ``train=True`` with an immutable ``codebook``; no ``quantizer`` key where one is needed; a
            ``z`` or ``mask`` of the wrong kind.
        """
        check_input(z, mask)
        if self.is_initializing():
            create_variables(self, z.shape[-1])
        return self.assign(z, None, mask, train, condition=condition, update_weights=update_weights)

    def assign(
        self,
        z: Vectors,
        indices: Int[Array, "*indices"] | None,
        mask: Mask = None,
        train: bool = False,
        *,
        condition: Condition = None,
        update_weights: Float[Array, "*heads codes"] | None = None,
        update: bool = True,
    ) -> QuantizerOutput:
        """The call, with codes that were chosen elsewhere: by a beam search, or by another device.

        Args:
          z: As in the call.
          indices: As ``encode`` returns them; None looks them up.
          mask: As in the call.
          train: As in the call.
          condition: As in the call.
          update_weights: As in the call.
          update: False leaves the codebook as it is even in training, for those who update it jointly later.

        Returns:
          As the call.

        Raises:
          UserError: As the call, and where the estimator chooses the codes itself.
        """
        check_input(z, mask)
        check_features(self, z.shape[-1])
        check_given(self, z, indices, update_weights)
        if indices is not None and chooses_codes(get_estimator(self.estimator)):
            raise UserError(
                f"estimator={self.estimator!r} chooses the codes itself: pass indices=None, or another one."
            )
        train = train and not self.is_initializing()
        vectors, token_mask = lookup_space(self, zero_where_masked(z, mask)), mask_of_heads(self, mask)
        if condition is None:
            found = self._look_up(vectors, codes_of(self), token_mask, train, indices)
        else:
            found = self._look_up_own(vectors, condition, token_mask, train, indices)
        counts = self._count(vectors, found.indices, token_mask)
        loss, metrics = losses(self, vectors, found.codes, counts, token_mask)
        metrics |= {"perplexity": jnp.mean(per_codebook(self, perplexity)(counts)), "usage": usage(counts.reshape(-1))}
        metrics |= geometry(vectors, found.codes, token_mask, mapped_axis(self))
        if self.codebook_update != "none":
            metrics["dead_codes"] = count_dead(self)
        if train and update:
            metrics |= learn(self, vectors, found.indices, counts, token_mask, update_weights)
        # The sum is the value of the first term bit for bit: the second is zero, and carries a gradient to the codes.
        quantized = found.quantized + self.synchronization * (found.codes - jax.lax.stop_gradient(found.codes))
        quantized = output_space(self, quantized).astype(z.dtype)
        indices = minus_one_where_masked(found.indices, token_mask)
        return QuantizerOutput(zero_where_masked(quantized, mask), indices, loss, jax.lax.stop_gradient(metrics))

    def encode(
        self, z: Vectors, mask: Mask = None, *, condition: Condition = None, top_k: int | None = None
    ) -> Int[Array, "*indices"]:
        """Returns the index of each vector's nearest code, or of its nearest ``top_k``.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.
          condition: As in the call.
          top_k: Number of codes per vector, nearest first, along a new last axis.

        Returns:
          int32 indices; with several heads, an axis of heads follows the leading axes of ``z``.
        """
        check_input(z, mask)
        check_features(self, z.shape[-1])
        vectors, codes = lookup_space(self, z), codes_of(self, condition)
        search = self._nearest if condition is None else nearest_own_codes
        if top_k is not None:
            search = partial(nearest_k_codes if condition is None else nearest_k_own_codes, k=top_k)
        indices = self._search(search, vectors, codes)
        token_mask = mask_of_heads(self, mask)
        if top_k is not None and token_mask is not None:
            token_mask = jnp.broadcast_to(token_mask[..., None], indices.shape)
        return minus_one_where_masked(indices, token_mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"], *, condition: Condition = None) -> Vectors:
        """Returns the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector. Anything
            else becomes NaN, which shows, instead of another code, which would not. With several heads, their axis
            is the last one.
          condition: As in the call.

        Returns:
          Vectors in float32.
        """
        if self.heads > 1 and indices.shape[-1:] != (self.heads,):
            raise UserError(f"indices has shape {indices.shape}: its last axis has to be the {self.heads} heads.")
        decode = lambda valid: output_space(self, codes_at(self, valid, condition))  # noqa: E731
        return decode_valid(decode, indices, self.num_codes, several=self.heads > 1)

    def kmeans_init(
        self,
        z: Vectors,
        mask: Mask = None,
        *,
        iterations: int = 10,
        start: Literal["tokens", "plus_plus"] = "tokens",
    ) -> None:
        """Starts the codebook from clusters.

        Call it once, before training, as
        ``_, updates = vq.apply(variables, z, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": key})``.

        Args:
          z: The vectors to cluster, better many times ``num_codes``: stack several batches along a leading axis.
          mask: True for valid tokens; at least one has to be.
          iterations: Of Lloyd's algorithm.
          start: First means: random tokens, or those of k-means++.

        Raises:
          UserError: The collection ``codebook`` is immutable, or there is no ``quantizer`` key.
        """
        check_input(z, mask)
        check_features(self, z.shape[-1])
        if z.size == 0:
            raise UserError(f"z has shape {z.shape}: kmeans_init takes at least one token.")
        if not is_count(iterations) and iterations != 0:
            raise UserError(f"iterations={iterations!r} is not allowed: use a whole number of at least 0.")
        if self.codebook_transform is not None and not hasattr(self.codebook_transform, "to_base"):
            name = type(self.codebook_transform).__name__
            raise UserError(f"kmeans_init needs the inverse of codebook_transform={name}, which has no to_base method.")
        require_mutable(self, "kmeans_init(z)")
        vectors = lookup_space(self, zero_where_masked(z, mask))
        start_from_clusters(self, vectors, mask_of_heads(self, mask), iterations, start)

    def codebook_loss(self, z: Vectors, mask: Mask = None) -> Float[Array, ""]:
        """The mean squared distance of codes to the tokens that choose them, with gradient to the codes alone.

        What alternating optimization minimizes between task steps (:mod:`vqjax.alternating`).

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens.

        Returns:
          A scalar.
        """
        check_input(z, mask)
        check_features(self, z.shape[-1])
        vectors = jax.lax.stop_gradient(lookup_space(self, zero_where_masked(z, mask)))
        codes = codes_of(self)
        indices = self._search(self._nearest, vectors, codes)
        return distance(self, vectors, codes_at(self, indices), mask_of_heads(self, mask))

    def unquantized(self, z: Vectors) -> Vectors:
        """What an infinitely fine codebook would return: projections and normalization without the lookup.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors in the input's dtype, with the plain gradient.
        """
        check_input(z, None)
        check_features(self, z.shape[-1])
        return output_space(self, lookup_space(self, z)).astype(z.dtype)

    def _look_up_own(self, vectors: Vectors, condition: Array, mask: Mask, train: bool, given: Array | None) -> Lookup:
        """Each token in its own codebook: only the chosen codes are made with gradient, and as decode makes them."""
        if given is None:
            given = nearest_own_codes(vectors, codes_of(self, condition))
        chosen = codes_at(self, jnp.maximum(given, 0), condition)
        return self._look_up(vectors, stored_codes(self), mask, train, given, chosen)

    def _look_up(
        self, vectors: Vectors, codes: Array, mask: Mask, train: bool, given: Array | None, chosen: Array | None = None
    ) -> Lookup:
        estimator = get_estimator(self.estimator)
        key = None
        if train and ("key" in requirements(estimator) or self.sampling_temperature > 0):
            cause = "sampling_temperature" if self.sampling_temperature > 0 else f"estimator={self.estimator!r}"
            key = draw_keys(self, cause)
        # A masked token is given as -1, which is no code.
        given = None if given is None else jnp.maximum(given, 0)
        settings = {"temperature": self.sampling_temperature, "metric": self.metric, "axis_name": mapped_axis(self)}
        choose = partial(look_up, estimator=estimator, search=self._nearest, **settings)
        if not self.separate_codebooks:
            return choose(vectors, codes, mask, key, given, chosen)
        axes = (-2, 0, None if mask is None else -1, None if key is None else 0, None if given is None else -1)
        return jax.vmap(choose, in_axes=axes, out_axes=Lookup(-2, -1, -2))(vectors, codes, mask, key, given)

    def _nearest(self, vectors: Vectors, codes: Array) -> Int[Array, "*batch"]:
        return nearest_codes(vectors, codes, shards=self.codebook_shards, search=self.search)

    def _search(self, search: Callable, vectors: Vectors, codes: Array) -> Int[Array, "*indices"]:
        if not self.separate_codebooks:
            return search(vectors, codes)
        found = jax.vmap(search, in_axes=(-2, 0))(vectors, codes)
        return jnp.moveaxis(found, 0, vectors.ndim - 2)

    def _count(self, vectors: Vectors, indices: Int[Array, "*tokens"], mask: Mask) -> Float[Array, "*codebooks codes"]:
        tokens, token_mask = per_group(self, jax.lax.stop_gradient(vectors), mask)
        return assigned(self, tokens, indices, token_mask).counts
