"""The vector quantizer: each vector becomes its nearest code."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from vqjax.errors import UserError
from vqjax.estimators import Estimator, chooses_codes, get_estimator, keyword_names, straight_through
from vqjax.estimators.jacobian import with_gradient_of
from vqjax.functional.codebook import Assignment, Codebook, assign
from vqjax.functional.kmeans import kmeans
from vqjax.functional.metrics import geometry_statistics, perplexity, usage
from vqjax.functional.norms import normalize, normalize_layer, normalize_rms
from vqjax.functional.numbers import Number, is_traced, is_zero
from vqjax.functional.regularizers import Regularizer
from vqjax.functional.search import (
    nearest_codes,
    nearest_k_codes,
    nearest_k_own_codes,
    nearest_own_codes,
    sample_codes,
)
from vqjax.quantizers.base import Quantizer, QuantizerOutput, check_indices, decode_valid, zero_where_masked
from vqjax.quantizers.boxes import box_like, read, write
from vqjax.quantizers.codebooks import (
    BaseCodebook,
    Candidates,
    EMACodebook,
    FrozenCodebook,
    Variables,
    get_codebook,
    per_codebook,
    take_codes,
)
from vqjax.quantizers.initializers import get_initializer
from vqjax.quantizers.transforms import LinearTransform, has_inverse, takes_condition
from vqjax.quantizers.validation import (
    check_flags,
    check_input,
    is_count,
    require,
    require_count,
    require_positive,
    require_regularizers,
    require_weight,
)

Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None
Condition = Float[Array, "*batch features"] | None
Indices = Int[Array, "*indices"]
Scalar = Float[Array, ""]
Codes = Float[Array, "*codebooks codes dim"]

# Latents as they are compared with codes: projected, split into heads (one token per head), and normalized.
Latents = Float[Array, "*tokens code_dim"]
TokenMask = Bool[Array, "*tokens"] | None
TokenIndices = Int[Array, "*tokens"]
Counts = Float[Array, "*codebooks codes"]
Keys = Key[Array, "*codebooks"] | None


LATENT_NORMS: dict[str, Callable[[Latents], Latents]] = {"rms": normalize_rms, "layer": normalize_layer}
"""Norms in front of a lookup by name."""


class Lookup(NamedTuple):
    """The result of a lookup.

    Attributes:
      quantized: The codes, with the gradient of the estimator.
      indices: int32, one per latent.
      codes: The codes at ``indices``, without the estimator: gradients flow to the codebook alone.
    """

    quantized: Latents
    indices: TokenIndices
    codes: Latents


class VectorQuantizer(Quantizer):
    r"""Quantizer that replaces each vector with its nearest code; an estimator defines the gradient.

    The code :math:`q = e_i,\ i = \arg\min_k |z - e_k|^2` is returned bit for bit (in training with noise, if
    the estimator draws some); its gradient with respect to ``z`` is the estimator's (by default the rotation trick with
    the radial part of straight-through, which keeps the scale of the latents: docs/rotation.md).
    The loss is

    .. math:: \beta\, |z - \mathrm{sg}(q)|^2 + \alpha\, |\mathrm{sg}(z) - q|^2

    averaged over unmasked tokens and dimensions, where :math:`\alpha` is the ``weight`` of a codebook that is learned
    by gradient, and 0 otherwise. ``dim`` is taken from the last axis of the input; all other axes are batch axes.
    Losses and the lookup are computed in the space of the codes: after projection, split into heads and, for cosine,
    normalization.

    Variables:
      Those of the codebook, always in float32. With moving averages, the collection ``codebook`` holds ``codes``,
      ``counts``, ``sums`` and ``relative_usage`` (:class:`EMACodebook`, :class:`GradientCodebook` and
      :class:`FrozenCodebook` list theirs). With ``separate_codebooks``, every array has a leading axis of heads.
      ``params`` holds the projections (``project_in_kernel`` and so on), and the variables of a transform are under
      ``codebook_transform``.

    State and randomness:
      ``train=False`` changes nothing, and needs no other variables than those of the codes. ``train=True`` looks codes
      up first and updates the collection ``codebook`` afterwards, which must be mutable if it is not empty. Random
      numbers come from the stream ``quantizer`` (initial codes, k-means, replacement, sampling, noisy estimators).
      Under ``jit`` over a global batch the statistics are global.

    Attributes:
      num_codes: Size of the codebook.
      distance: ``"euclidean"``, or ``"cosine"``: latents and codes are scaled to unit length before the lookup, and
        output, estimator, losses and averages live on the unit sphere.
      estimator: A name from :data:`vqjax.estimators.ESTIMATORS` or a callable ``(z, q) -> q'``. Estimators that draw
        noise do so in training only.
      codebook: How the codes are stored and learned: ``"ema"``, ``"gradient"`` or ``"frozen"``, or one of the objects
        behind these names with its options, such as ``EMACodebook(decay=0.9, replace=Replacement())``.
      commitment_weight: :math:`\beta`.
      commitment: The distance in the commitment loss. ``"squared"``: :math:`|z - q|^2`, a mean over dimensions;
        ``"relative"``: :math:`E|z - q|^2 / E|z|^2`, with a gradient through the denominator, so that no scale of the
        latents is preferred; ``"angular"``: :math:`|z/|z| - q/|q||^2`, which leaves the length free.
      latent_norm: Norm of the latents in front of the lookup, without parameters: ``"rms"`` divides them by their root
        mean square, ``"layer"`` also subtracts their mean. Initial codes are scaled to the same length.
      differentiate_norm: False passes the estimator's gradient around ``latent_norm`` or the scaling to unit length, to
        the latents as they were before it, as ViT-VQGAN does.
      codebook_dim: Number of features per head of the codes. If the input has a different number, it is projected
        before the lookup and back after it.
      heads: Number of parts into which the features are split; each part is looked up separately. With several,
        indices have a last axis of heads.
      codebook_init: Initializer of the ``[num_codes, dim]`` codes, or its name in
        :data:`vqjax.quantizers.initializers.INITIALIZERS`. The axis names of one in ``nn.with_partitioning`` also
        go to all other variables with a row per code.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Leave it None under plain
        ``jit``, where they are global without it. Pass every device the same ``quantizer`` key; average gradients
        over the axis of ``pmap``, and the loss over that of ``shard_map``, whose gradients of replicated parameters
        are sums.
      separate_codebooks: One codebook per head instead of one for all.
      sampling_temperature: In training, draw indices from ``softmax(similarity / temperature)``
        (:func:`vqjax.functional.sample_codes`) instead of taking the nearest code; None disables sampling.
      regularizers: Terms added to the loss; see :mod:`vqjax.functional.regularizers`.
      codebook_shards: Number of shards of the codebook along its first axis (``PartitionSpec("codes")`` for the
        collection ``codebook``, under ``jit``, as argument and in ``out_shardings``); must divide ``num_codes``. Each
        device searches its own shard, and nothing of the codebook's size moves between devices. The result is the same
        for any number.

    Raises:
      UserError: Raised by the constructor if an argument is out of range, or is set but would have no effect.

    Example:
      >>> import jax
      >>> from vqjax import VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = VectorQuantizer(num_codes=16)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
      >>> variables = variables | updates
      >>> out.quantized.shape, out.indices.shape, sorted(variables["codebook"])
      ((2, 8, 8, 4), (2, 8, 8), ['codes', 'counts', 'relative_usage', 'sums'])
      >>> indices = vq.apply(variables, z, method="encode")
      >>> vectors = vq.apply(variables, indices, method="decode")
      >>> bool((vectors == vq.apply(variables, z, train=False).quantized).all())
      True

    Source: van den Oord et al., 2017 (arXiv 1711.00937); Fifty et al., ICLR 2025 (arXiv 2410.06424).
    """

    num_codes: int
    _: dataclasses.KW_ONLY
    distance: Literal["euclidean", "cosine"] = "euclidean"
    estimator: str | Estimator = "tangential_rotation"
    codebook: str | BaseCodebook = "ema"
    commitment_weight: Number = 0.25
    commitment: Literal["squared", "relative", "angular"] = "squared"
    latent_norm: Literal["rms", "layer"] | None = None
    differentiate_norm: bool = True
    codebook_dim: int | None = None
    heads: int = 1
    codebook_init: str | Callable = "unit_uniform"
    axis_name: str | None = None
    separate_codebooks: bool = False
    sampling_temperature: Number | None = None
    regularizers: tuple[Regularizer, ...] = ()
    codebook_shards: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "codebook", get_codebook(self.codebook))
        self._check_arguments()
        self._check_combinations()

    def _check_arguments(self) -> None:
        check_flags(self)
        require_count("num_codes", self.num_codes, largest=2**31 - 1)
        require(self.distance in ("euclidean", "cosine"), "distance", self.distance, "'euclidean' or 'cosine'")
        get_estimator(self.estimator)
        require_weight("commitment_weight", self.commitment_weight)
        commitments = ("squared", "relative", "angular")
        require(self.commitment in commitments, "commitment", self.commitment, "'squared', 'relative' or 'angular'")
        known = self.latent_norm is None or self.latent_norm in LATENT_NORMS
        require(known, "latent_norm", self.latent_norm, "'rms', 'layer' or None")
        require_count("heads", self.heads)
        if self.codebook_dim is not None:
            require_count("codebook_dim", self.codebook_dim)
        get_initializer(self.codebook_init)
        require_regularizers(self.regularizers)
        if self.sampling_temperature is not None:
            require_positive("sampling_temperature", self.sampling_temperature)
        shards = self.codebook_shards
        divides = is_count(shards) and self.num_codes % shards == 0
        require(divides, "codebook_shards", shards, f"an integer that divides num_codes={self.num_codes}")

    def _check_combinations(self) -> None:
        codebook, estimator = self.codebook, get_estimator(self.estimator)
        expected, advice = "at least 2 with separate_codebooks=True", "use more heads, or separate_codebooks=False"
        require(not self.separate_codebooks or self.heads > 1, "heads", self.heads, expected, advice)
        if self.separate_codebooks:
            self._require_off("separate codebooks cannot be sharded", codebook_shards=1)
        for regularizer in self.regularizers:
            name = type(regularizer).__name__
            kept = codebook.is_learned or not regularizer.needs_learned_codes
            expected = f"without {name} unless codes are learned by gradient"
            advice = f"{name} acts through a gradient on the codes, which this codebook ignores; use GradientCodebook()"
            require(kept, "regularizers", self.regularizers, expected, advice)
        if self._unit_norm:
            self._require_off(
                "distance='cosine' has scaled latents to unit length", commitment="squared", latent_norm=None
            )
        elif self.latent_norm is None:
            self._require_off("there is no norm without latent_norm or distance='cosine'", differentiate_norm=True)
        running = self.distance == "cosine" and hasattr(codebook.transform, "update")
        advice = "running statistics move codes off the unit sphere"
        expected = "without running statistics if distance='cosine'"
        require(not running, "codebook.transform", codebook.transform, expected, advice)
        lost = self.distance == "cosine" and getattr(codebook.transform, "starts_at_zero", False)
        advice = "all its codes are zero at first, and normalization passes them no gradient"
        expected = f"'euclidean' with {type(codebook.transform).__name__}"
        require(not lost, "distance", self.distance, expected, advice)
        if chooses_codes(estimator):
            self._require_off(f"estimator={self.estimator!r} chooses the codes itself", sampling_temperature=None)
        if takes_condition(codebook.transform):
            advice = "a transform with a condition, which gives each token its own codebook, does not support it"
            self._require_off(advice, heads=1, sampling_temperature=None, regularizers=())
            expected = "one that does not choose the codes itself"
            require(not chooses_codes(estimator), "estimator", self.estimator, expected, advice)

    def _require_off(self, advice: str, **off: object) -> None:
        """Refuse options that are not off."""
        for name, value in off.items():
            current = getattr(self, name)
            require(not is_traced(current) and current == value, name, current, repr(value), advice)

    def setup(self) -> None:
        self._codebook = self.codebook
        if self.codebook.transform is not None:
            # A copy, which becomes a submodule of this module even if the transform was created inside another one.
            self.codebook_transform = self.codebook.transform.clone(parent=None, name=None)
            self._codebook = dataclasses.replace(self.codebook, transform=self.codebook_transform)

    @property
    def differs_in_training(self) -> bool:
        """True if the codebook changes, or codes or noise are drawn."""
        return self.codebook.changes_in_training or self.sampling_temperature is not None or self._is_noisy

    @property
    def index_shape(self) -> tuple[int, ...]:
        """An axis of heads, if there are several."""
        return (self.heads,) if self.heads > 1 else ()

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks, one or one per head."""
        return self.heads if self.separate_codebooks else 1

    @property
    def sync_nu(self) -> Number:
        """The codebook's weight with which the task's gradient reaches the codes."""
        return self.codebook.sync_nu

    def without_estimator(self) -> "VectorQuantizer":
        codebook = self.codebook if is_zero(self.sync_nu) else dataclasses.replace(self.codebook, sync_nu=0.0)
        return self.clone(parent=None, name=None, estimator=_pass_to_codes, codebook=codebook)

    def without_transform(self, variables: Mapping[str, Any]) -> tuple["VectorQuantizer", dict[str, Any]]:
        """Return a plain quantizer with the codes that this one looks up, for use after training.

        ``encode``, ``decode`` and evaluation give the same; nothing of the codebook is learned any more. Regularizers
        that train nothing but the codes are left out.

        Args:
          variables: Variables of this quantizer.

        Returns:
          A quantizer with a :class:`FrozenCodebook` and no transform, and its variables.

        Raises:
          UserError: Each token has its own codebook, so that there is none to store.

        Example:
          >>> import jax
          >>> from vqjax import SimVQ
          >>> vq, z = SimVQ(num_codes=16), jax.random.normal(jax.random.key(0), (8, 4))
          >>> variables = vq.init(jax.random.key(1), z)
          >>> plain, stored = vq.without_transform(variables)
          >>> jax.tree.map(jax.numpy.shape, stored)
          {'codebook': {'codes': (16, 4)}}
          >>> indices = vq.apply(variables, z, method="encode")
          >>> bool((plain.apply(stored, z, method="encode") == indices).all())
          True
        """
        inherited = {field.name for field in dataclasses.fields(VectorQuantizer)} - {"parent", "name"}
        options: dict[str, Any] = {name: getattr(self, name) for name in inherited} | {"codebook": FrozenCodebook()}
        options["regularizers"] = tuple(term for term in self.regularizers if not term.needs_learned_codes)
        params = {name: x for name, x in variables.get("params", {}).items() if name.startswith("project_")}
        stored = {"codebook": {"codes": self.apply(variables, method="code_vectors")}}
        # No submodule of this one, whose method makes it.
        return VectorQuantizer(**options, parent=None), stored | ({"params": params} if params else {})

    @nn.compact
    def __call__(
        self,
        z: Vectors,
        mask: Mask = None,
        train: bool | None = None,
        condition: Condition = None,
        *,
        code_update_weights: Float[Array, "*heads codes"] | None = None,
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no
            gradient, and come back as zero vectors with index -1.
          train: Update the codebook after the lookup, and draw what is random; to be given here or at construction,
            unless neither happens.
          condition: One vector per token, for a transform that gives each token a codebook of its own.
          code_update_weights: Update weight of each code of an :class:`EMACodebook`, in [0, 1]; 0 freezes the code.

        Returns:
          Codes, indices, the weighted loss, and these metrics:

          * ``quantization_error``, ``commitment_loss`` and ``codebook_loss``: unweighted; equal in value (the second
            with the squared commitment), different in gradient;
          * ``relative_error``: the error over the mean square of the latents;
          * ``perplexity`` and ``usage`` of this batch;
          * ``norm_ratio``: mean of |q|/|z|; ``angle``: mean angle in radians;
          * ``rms_latents`` and ``rms_codes``: root mean squares of latents and of their codes;
          * ``dead_codes``, if code usage is tracked: their number, by the moving average, before any replacement;
          * each regularizer by its name.

        Raises:
          UserError: ``train=True`` with an immutable ``codebook``; ``train`` is missing, or given twice; no
            ``quantizer`` key, and one is needed; ``z`` or ``mask`` has the wrong dtype or shape.
        """
        check_input(z, mask)
        if self.is_initializing():
            self._create_variables(z.shape[-1])
        return self.assign(z, None, mask, train, condition, code_update_weights=code_update_weights)

    def assign(
        self,
        z: Vectors,
        indices: Indices | None,
        mask: Mask = None,
        train: bool | None = None,
        condition: Condition = None,
        *,
        code_update_weights: Float[Array, "*heads codes"] | None = None,
        update: bool = True,
    ) -> QuantizerOutput:
        """Quantize vectors with codes that were chosen elsewhere, such as by a beam search or on another device.

        Args:
          z: As in the call.
          indices: Indices as ``encode`` returns them; None looks them up as in the call.
          mask: As in the call.
          train: As in the call.
          condition: As in the call.
          code_update_weights: As in the call.
          update: False leaves the codebook as it is even in training, for callers that update it later.

        Returns:
          The output of the call.

        Raises:
          UserError: As in the call; also if the estimator chooses the codes itself.
        """
        check_input(z, mask)
        train = self._is_training(train)
        variables = self._variables(z.shape[-1], train)
        self._check_given(z, indices, code_update_weights)
        features, token_mask = self._split(zero_where_masked(z, mask)), self._mask_of_heads(mask)
        latents = self._normalize(features)
        # The same numbers, for the lookup alone.
        crossing = latents if self.differentiate_norm else with_gradient_of(latents, features)
        key = self._draw_lookup_keys() if train else None
        # Masked tokens have index -1, which is not a valid code.
        given = None if indices is None else jnp.maximum(indices, 0)
        if condition is None:
            codes = self._codes(variables)
            lookup = self._look_up(crossing, codes, token_mask, key, given)
        else:
            codes, lookup = None, self._look_up_own(variables, crossing, condition, token_mask, key, given)
        assigned = self._assign(*self._group(latents, token_mask), lookup.indices)
        loss, metrics = self._losses(latents, lookup.codes, codes, assigned, token_mask)
        counts = assigned.counts
        metrics |= self._measure(variables, latents, lookup.codes, counts, token_mask, metrics["codebook_loss"])
        if train and update:
            batch = latents, lookup.indices, counts, token_mask
            metrics |= self._update_codebook(variables, *batch, code_update_weights)
        quantized = lookup.quantized
        if not is_zero(self.sync_nu):
            # The difference is zero but carries a gradient to the codes.
            quantized += self.sync_nu * (lookup.codes - jax.lax.stop_gradient(lookup.codes))
        quantized = zero_where_masked(self._from_code_space(quantized).astype(z.dtype), mask)
        indices = self._mask_indices(lookup.indices, mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(
        self, z: Vectors, mask: Mask = None, *, condition: Condition = None, top_k: int | None = None
    ) -> Indices:
        """Return the index of each vector's nearest code, or of its nearest ``top_k``.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.
          condition: As in the call.
          top_k: Number of codes per vector, nearest first, along a new last axis.

        Returns:
          int32 indices; with several heads, the axis of heads comes after the leading axes of ``z`` and before that of
          ``top_k``.
        """
        check_input(z, mask)
        variables = self._variables(z.shape[-1])
        codes = self._codes(variables, condition)
        search = self._nearest if condition is None else nearest_own_codes
        if top_k is not None:
            search = partial(nearest_k_codes if condition is None else nearest_k_own_codes, k=top_k)
        return self._mask_indices(self._search(search, self._to_code_space(z), codes), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"], *, condition: Condition = None) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Indices of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector. Any
            other index gives NaN, which exposes the mistake; the vector of some other code would hide it. With several
            heads, their axis is the last one.
          condition: As in the call.

        Returns:
          Vectors in float32.

        Raises:
          UserError: The last axis is not that of the heads, or the variables are those of different settings.
        """
        check_indices(indices)
        if self.heads > 1 and indices.shape[-1:] != (self.heads,):
            raise UserError(f"indices must have {self.heads} heads along their last axis, got shape {indices.shape}.")
        variables = self._variables()

        def decode(valid: Indices) -> Vectors:
            return self._from_code_space(self._codes_at(variables, valid, condition))

        return decode_valid(decode, indices, self.num_codes, several=self.heads > 1)

    def code_vectors(self) -> Codes:
        return self._codes(self._variables())

    def kmeans_init(
        self,
        z: Vectors,
        mask: Mask = None,
        *,
        iterations: int = 10,
        start: Literal["random", "plus_plus"] = "random",
    ) -> None:
        """Initialize the codebook with the cluster centers of k-means.

        Call it once, before training, as
        ``_, updates = vq.apply(variables, z, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": key})``.
        The codes of a :class:`GradientCodebook` without replacement are in ``params``, which has to be mutable instead.

        Args:
          z: The vectors to cluster, preferably many times ``num_codes``; concatenate several batches to get enough.
          mask: True for valid tokens; at least one must be.
          iterations: Number of iterations of Lloyd's algorithm.
          start: Initial cluster centers: random tokens, or those of k-means++.

        Raises:
          UserError: The collection of the codes is immutable, or there is no ``quantizer`` key.
        """
        check_input(z, mask)
        variables, transform = self._variables(z.shape[-1], update=True), self.codebook.transform
        if z.size == 0:
            raise UserError(f"z must have at least one token for kmeans_init, got shape {z.shape}.")
        whole = is_count(iterations) or (isinstance(iterations, int | np.integer) and iterations == 0)
        require(whole, "iterations", iterations, "a non-negative integer")
        invertible = transform is None or has_inverse(transform)
        require(invertible, "codebook.transform", transform, "invertible (have a method to_base) for kmeans_init")
        collection = self.codebook.clusters_in
        if not self.is_mutable_collection(collection):
            raise UserError(
                f"kmeans_init(z) updates the collection {collection!r}, which is immutable in this call. Write\n"
                f"  _, updates = vq.apply(variables, z, method='kmeans_init', mutable=[{collection!r}], rngs=...)\n"
                "  variables = variables | updates."
            )
        latents = self._to_code_space(zero_where_masked(z, mask))
        candidates = self._candidates("kmeans_init", *self._group(latents, self._mask_of_heads(mask)))
        settings = {"iterations": iterations, "unit_norm": self._unit_norm, "start": start}

        def cluster(key: Key[Array, ""], latents: Array, mask: Array | None) -> Codebook:
            return kmeans(key, latents, self.num_codes, mask=mask, **settings)

        clusters = per_codebook(cluster, variables["codes"])(*candidates)
        self._write(self._codebook.restart(variables, clusters), collection)

    def codebook_loss(self, z: Vectors, mask: Mask = None) -> Scalar:
        """Return the mean squared distance of codes to the latents that choose them, with gradient to the codes alone.

        Alternating optimization minimizes this loss between training steps (:mod:`vqjax.tasks.alternating`).

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens.

        Returns:
          A scalar.
        """
        check_input(z, mask)
        variables = self._variables(z.shape[-1])
        latents = jax.lax.stop_gradient(self._to_code_space(zero_where_masked(z, mask)))
        codes = self._codes(variables)
        chosen = take_codes(codes, self._search(self._nearest, latents, codes))
        return self._squared_distance(latents, chosen, self._mask_of_heads(mask))

    def bypass(self, z: Vectors) -> Vectors:
        """Apply the projections and normalization without the lookup, as if the codebook were infinitely fine.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors in the input's dtype, with the plain gradient.
        """
        check_input(z, None)
        self._variables(z.shape[-1])
        return self._from_code_space(self._to_code_space(z)).astype(z.dtype)

    @property
    def _unit_norm(self) -> bool:
        return self.distance == "cosine"

    def _create_variables(self, features: int) -> None:
        """Create the projections and the codebook during ``init``, the first time the module is called."""
        if self.has_variable(self._collection_of("codes"), "codes"):
            return
        if self.codebook_dim is not None:
            self._create_projections(features, self.heads * self.codebook_dim)
        shape, initializer = (self.num_codes, self._code_features(features)), get_initializer(self.codebook_init)

        def initialize(key: Key[Array, ""], *of: Any) -> Codes | nn.meta.AxisMetadata:
            codes = initializer(key, *of)
            # Through boxes; those of unit length are scaled by the codebook.
            return codes if self.latent_norm is None else jax.tree.map(self._normalize, codes)

        def initial_codes(key: Key[Array, ""]) -> Codes | nn.meta.AxisMetadata:
            if not self.separate_codebooks:
                return initialize(key, shape, jnp.float32)
            codes = jax.vmap(lambda key: initialize(key, shape, jnp.float32))(jax.random.split(key, self.heads))
            return nn.meta.add_axis(codes, 0, {nn.PARTITION_NAME: None})

        if self.codebook.in_params:
            self.param("codes", initial_codes)
            codes = self.get_variable("params", "codes")
        else:
            codes = initial_codes(self.make_rng("quantizer"))
        for name, value in self.codebook.create(nn.unbox(codes), self._unit_norm).items():
            if self._collection_of(name) == "codebook":
                # A copy: codes and sums may be the same buffer, which cannot be donated twice.
                self.variable("codebook", name, lambda value=value: box_like(codes, value.copy()))

    def _collection_of(self, name: str) -> str:
        return "params" if name == "codes" and self.codebook.in_params else "codebook"

    def _variables(self, features: int | None = None, update: bool = False) -> Variables:
        """Read the variables of the codebook, made for these settings and an input of ``features``.

        All have to be there for an update. Otherwise those of the codes are enough.
        """
        codebook = self.codebook
        known = dict.fromkeys((*codebook.variable_names, *codebook.code_names))
        names = {
            name: self._collection_of(name) for name in known if self.has_variable(self._collection_of(name), name)
        }
        needed = codebook.variable_names if update else codebook.code_names
        missing = [name for name in needed if name not in names]
        if missing:
            what = "a codebook" if {"codes", "offsets"} & {*missing} else f"the codebook's {' and '.join(missing)}"
            raise UserError(
                f"The variables must hold {what}, got none; create them with init(key, z), using the same settings, "
                "and pass all collections to apply, not only params."
            )
        variables = {name: read(self, collection, name) for name, collection in names.items()}
        self._check_shape(variables["codes"].shape, features)
        return variables

    def _write(self, variables: Variables, collection: str = "codebook") -> None:
        for name in self.codebook.variable_names:
            if self._collection_of(name) == collection:
                write(self, collection, name, jax.lax.stop_gradient(variables[name]))

    def _code_features(self, features: int) -> int:
        """Return the dimension of a code for an input of this many features."""
        if self.codebook_dim is not None:
            return self.codebook_dim
        expected = f"a divisor of the {features} features of z"
        require(features % self.heads == 0, "heads", self.heads, expected, "or set codebook_dim")
        return features // self.heads

    def _check_shape(self, stored: tuple[int, ...], features: int | None) -> None:
        """Refuse the codebook of different settings, and inputs that it was not created for."""
        heads = (self.heads,) if self.separate_codebooks else ()
        if stored[:-1] != (*heads, self.num_codes) or self.codebook_dim not in (None, stored[-1]):
            number = "a codebook per head" if heads else "one codebook"
            dim = "" if self.codebook_dim is None else f", codebook_dim={self.codebook_dim}"
            raise UserError(
                f"The codebook in the variables must match num_codes={self.num_codes}{dim} and {number}, got shape "
                f"{stored}; use the settings it was created with, or initialize again."
            )
        if features is None:
            return
        made_for = stored[-1] * self.heads
        if self._is_projected:
            made_for = read(self, "params", "project_in_kernel").shape[0]
        if features != made_for:
            raise UserError(
                f"z must have {made_for} features, as the codebook of shape {stored} in the variables expects, got "
                f"{features}; pass vectors of that size, or initialize again."
            )

    def _check_given(self, z: Vectors, indices: Indices | None, weights: Array | None) -> None:
        """Refuse indices and weights that do not fit the tokens and the codebook."""
        if indices is not None:
            expected, given = (*z.shape[:-1], *self.index_shape), f"{indices.dtype}{list(indices.shape)}"
            if indices.shape != expected or not jnp.issubdtype(indices.dtype, jnp.integer):
                raise UserError(f"indices must be integers of shape {list(expected)}, one per token, got {given}.")
            if chooses_codes(get_estimator(self.estimator)):
                chooses = f"estimator={self.estimator!r} chooses the codes itself"
                raise UserError(f"indices must be None, got {given}; {chooses}.")
        if weights is not None and not isinstance(self.codebook, EMACodebook):
            raise UserError(
                f"code_update_weights must be None for {type(self.codebook).__name__}, got an array of shape "
                f"{weights.shape}; use EMACodebook, whose updates they weigh."
            )
        expected = (self.heads, self.num_codes) if self.separate_codebooks else (self.num_codes,)
        if weights is not None and weights.shape not in (expected, expected[-1:]):
            raise UserError(f"code_update_weights must have shape {expected}, one per code, got {weights.shape}.")

    def _require_mutable(self) -> None:
        if not self.is_mutable_collection("codebook"):
            raise UserError(
                "train=True updates the collection 'codebook', which is immutable in this call to apply. Write\n"
                "  out, updates = vq.apply(variables, z, train=True, mutable=['codebook'])\n"
                "  variables = variables | updates\n"
                "or pass train=False to leave the codebook as it is."
            )

    def _to_code_space(self, z: Vectors) -> Latents:
        """Map inputs to the space of the codes; with several heads, the axis of heads comes before the last one."""
        return self._normalize(self._split(z))

    def _split(self, z: Vectors) -> Latents:
        """Project inputs and split them into heads."""
        z = self._project_in(z, None)
        return z if self.heads == 1 else z.reshape(*z.shape[:-1], self.heads, z.shape[-1] // self.heads)

    def _normalize(self, features: Latents) -> Latents:
        if self._unit_norm:
            return normalize(features)
        return features if self.latent_norm is None else LATENT_NORMS[self.latent_norm](features)

    def _from_code_space(self, codes: Latents) -> Vectors:
        """Map codes back to the space of the inputs."""
        if self.heads > 1:
            codes = codes.reshape(*codes.shape[:-2], self.heads * codes.shape[-1])
        return self._project_out(codes)

    def _mask_of_heads(self, mask: Mask) -> TokenMask:
        if mask is None or self.heads == 1:
            return mask
        return jnp.broadcast_to(mask[..., None], (*mask.shape, self.heads))

    def _group(self, latents: Latents, mask: TokenMask) -> tuple[Array, Array | None]:
        """Flatten tokens into one axis; with one codebook per head, the axis of heads comes first."""
        if not self.separate_codebooks:
            return latents.reshape(-1, latents.shape[-1]), None if mask is None else mask.reshape(-1)
        latents = jnp.moveaxis(latents, -2, 0).reshape(self.heads, -1, latents.shape[-1])
        return latents, None if mask is None else jnp.moveaxis(mask, -1, 0).reshape(self.heads, -1)

    def _codes(self, variables: Variables, condition: Condition = None) -> Array:
        return self._codebook.codes(variables, unit_norm=self._unit_norm, condition=condition)

    def _codes_at(self, variables: Variables, indices: Indices, condition: Condition) -> Latents:
        return self._codebook.codes_at(variables, indices, unit_norm=self._unit_norm, condition=condition)

    def _look_up(self, latents: Latents, codes: Codes, mask: TokenMask, keys: Keys, indices: Indices | None) -> Lookup:
        """Choose a code for each latent unless it is given, and apply the estimator."""
        if not self.separate_codebooks:
            return self._look_up_in(latents, codes, mask, keys, indices)
        axes = (-2, 0, None if mask is None else -1, None if keys is None else 0, None if indices is None else -1)
        look_up = jax.vmap(self._look_up_in, in_axes=axes, out_axes=Lookup(-2, -1, -2))
        return look_up(latents, codes, mask, keys, indices)

    def _look_up_in(
        self,
        latents: Latents,
        codes: Float[Array, "codes dim"],
        mask: TokenMask,
        key: Keys,
        indices: TokenIndices | None,
    ) -> Lookup:
        """Do the lookup of ``_look_up`` in a single codebook (with one per head, that of one head under vmap)."""
        estimator = self._estimator(key)
        if chooses_codes(estimator):
            quantized, indices = estimator(latents, codes, **_select(estimator, key=key, mask=mask))
            return Lookup(quantized, indices, codes[indices])
        if indices is None and key is not None and self.sampling_temperature is not None:
            # A key of its own: an estimator's noise must not depend on the noise that chose the index.
            settings = {"temperature": self.sampling_temperature, "distance": self.distance}
            indices = sample_codes(jax.random.fold_in(key, 1), latents, codes, **settings)
        elif indices is None:
            indices = self._nearest(latents, codes)
        return self._cross(latents, codes[indices], indices, mask, key)

    def _look_up_own(
        self,
        variables: Variables,
        latents: Latents,
        condition: Condition,
        mask: TokenMask,
        key: Keys,
        indices: Indices | None,
    ) -> Lookup:
        """Look each latent up in its own codebook."""
        if indices is None:
            indices = nearest_own_codes(latents, self._codes(variables, condition))
        # Computed for the chosen indices only, exactly as `decode` does, so that the gradient flows to these alone.
        return self._cross(latents, self._codes_at(variables, indices, condition), indices, mask, key)

    def _cross(self, latents: Latents, chosen: Latents, indices: TokenIndices, mask: TokenMask, key: Keys) -> Lookup:
        """Give the chosen codes the gradient of the estimator."""
        estimator = self._estimator(key)
        settings = {"indices": indices, "num_codes": self.num_codes, "mask": mask, "key": key}
        quantized = estimator(latents, chosen, **_select(estimator, axis_name=self._batch_axis, **settings))
        return Lookup(quantized, indices, chosen)

    def _estimator(self, key: Keys) -> Estimator:
        """Return the estimator; without a key, outside training, straight-through replaces a noisy one."""
        return straight_through if key is None and self._is_noisy else get_estimator(self.estimator)

    @property
    def _is_noisy(self) -> bool:
        """True if the estimator draws random numbers."""
        return "key" in keyword_names(get_estimator(self.estimator))

    def _draw_lookup_keys(self) -> Keys:
        """Draw the keys of a lookup, if it is random."""
        if self.sampling_temperature is not None:
            return self._draw_keys("sampling_temperature")
        return self._draw_keys(f"estimator={self.estimator!r}") if self._is_noisy else None

    def _draw_keys(self, cause: str, *, per_device: bool = True) -> Keys:
        """Draw a key, or one per codebook."""
        key = self._draw_key(cause, per_device=per_device)
        return jax.random.split(key, self.heads) if self.separate_codebooks else key

    def _nearest(self, latents: Latents, codes: Float[Array, "codes dim"]) -> TokenIndices:
        return nearest_codes(latents, codes, shards=self.codebook_shards)

    def _search(self, search: Callable, latents: Latents, codes: Array) -> Indices:
        if not self.separate_codebooks:
            return search(latents, codes)
        return jnp.moveaxis(jax.vmap(search, in_axes=(-2, 0))(latents, codes), 0, latents.ndim - 2)

    def _assign(self, latents: Array, mask: Array | None, indices: TokenIndices) -> Assignment:
        """Count and sum the grouped latents of each code over the global batch."""
        if self.separate_codebooks:
            # The codes of all codebooks in one axis, because checkify refuses a scatter that is mapped over an axis.
            firsts = self.num_codes * jnp.arange(self.heads, dtype=jnp.int32)
            tokens, mask = latents.reshape(-1, latents.shape[-1]), None if mask is None else mask.ravel()
            indices = jnp.moveaxis(indices + jnp.broadcast_to(firsts, indices.shape), -1, 0)
            batch = assign(tokens, indices.ravel(), self.heads * self.num_codes, mask)
            batch = jax.tree.map(lambda x: x.reshape(self.heads, self.num_codes, *x.shape[1:]), batch)
        else:
            batch = assign(latents, indices.ravel(), self.num_codes, mask)
        return batch if self._batch_axis is None else jax.lax.psum(batch, self._batch_axis)

    def _losses(
        self, latents: Latents, chosen: Latents, codes: Codes | None, batch: Assignment, mask: TokenMask
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the weighted loss, and each term without its weight by name."""
        commitment = self._commitment(latents, jax.lax.stop_gradient(chosen), mask)
        codebook = self._squared_distance(jax.lax.stop_gradient(latents), chosen, mask)
        loss = self.commitment_weight * commitment
        if self.codebook.is_learned:
            loss += self.codebook.weight * codebook
        metrics = {"commitment_loss": commitment, "codebook_loss": codebook}
        for regularizer in self.regularizers:
            metrics[regularizer.name] = self._regularize(regularizer, latents, codes, batch, mask)
            loss += regularizer.weight * metrics[regularizer.name]
        return loss, metrics

    def _commitment(self, latents: Latents, chosen: Latents, mask: TokenMask) -> Scalar:
        if self.commitment == "angular":
            difference = normalize(latents) - normalize(chosen)
            return self._mean(jnp.sum(jnp.square(difference), axis=-1), mask)
        squared = self._squared_distance(latents, chosen, mask)
        return squared if self.commitment == "squared" else self._relative_error(squared, latents, mask)

    def _regularize(
        self, regularizer: Regularizer, latents: Latents, codes: Codes, batch: Assignment, mask: TokenMask
    ) -> Scalar:
        """Return the value of a regularizer, the mean over codebooks."""

        def value(latents: Latents, codes: Codes, batch: Assignment, mask: TokenMask) -> Scalar:
            settings = {"axis_name": self._batch_axis, "distance": self.distance}
            return regularizer(latents, codes, batch.counts, mask, **settings, **_select(regularizer, sums=batch.sums))

        if not self.separate_codebooks:
            return value(latents, codes, batch, mask)
        latents, mask = self._group(latents, mask)
        return jnp.mean(jax.vmap(value)(latents, codes, batch, mask))

    def _measure(
        self, variables: Variables, latents: Latents, chosen: Latents, counts: Counts, mask: TokenMask, error: Scalar
    ) -> dict[str, Scalar]:
        """Return the metrics that are not losses."""
        latents, error = jax.lax.stop_gradient((latents, error))
        metrics = geometry_statistics(latents, chosen, mask, self._batch_axis)
        metrics |= {"quantization_error": error, "relative_error": self._relative_error(error, latents, mask)}
        metrics["perplexity"] = jnp.mean(per_codebook(perplexity, variables["codes"])(counts))
        metrics["usage"] = usage(counts.ravel())
        if "relative_usage" in variables:
            metrics["dead_codes"] = self.codebook.count_dead(variables["relative_usage"])
        return metrics

    def _update_codebook(
        self,
        variables: Variables,
        latents: Latents,
        indices: TokenIndices,
        counts: Counts,
        mask: TokenMask,
        weights: Array | None,
    ) -> dict[str, Scalar]:
        """Update the variables by one batch; return the number of codes that are then dead, before any is replaced."""
        codebook = self._codebook
        if codebook.changes_in_training:
            self._require_mutable()
        latents, mask = self._group(jax.lax.stop_gradient(latents), mask)
        if hasattr(codebook.transform, "update"):
            # Update the transform first: otherwise the first batch would be averaged as if nothing were transformed.
            codes = jax.lax.stop_gradient(codebook.stored(variables))
            codebook.transform.update(codes, latents, mask, self._batch_axis)
        if not codebook.tracks_usage:
            return {}
        latents = codebook.where_averaged(latents)
        batch = self._assign(latents, mask, indices)._replace(counts=counts)
        candidates = None
        if codebook.replace is not None and latents.size > 0:
            candidates = self._candidates(f"replace={codebook.replace}", latents, mask)
        if weights is not None and self.separate_codebooks:
            weights = jnp.broadcast_to(weights, (self.heads, self.num_codes))
        settings = {"unit_norm": self._unit_norm, "candidates": candidates, "weights": weights}
        variables, dead = codebook.update(variables, batch, **settings)
        self._write(variables)
        return {"dead_codes": dead}

    def _candidates(self, cause: str, latents: Array, mask: Array | None) -> Candidates:
        """Return the grouped latents of all devices, and a mask without zero vectors if codes have unit length."""
        if self._unit_norm:
            # A zero code would be the nearest to every token that is more than 60 degrees from all other codes.
            directed = jnp.any(latents != 0, axis=-1)
            mask = directed if mask is None else mask & directed
        if self._batch_axis is not None:
            axis = latents.ndim - 2
            # "invarying": shard_map cannot infer that every device holds the same result.
            gather = partial(jax.lax.all_gather, axis_name=self._batch_axis, axis=axis, tiled=True, to="invarying")
            latents, mask = jax.tree.map(gather, (latents, mask))
        return Candidates(self._draw_keys(cause, per_device=False), latents, mask)


class ProductVQ(VectorQuantizer):
    """Product quantization: every group of features (a head) has its own codebook.

    ``VectorQuantizer(heads=..., separate_codebooks=True)`` under its common name: ``heads`` codebooks of ``num_codes``
    vectors can represent ``num_codes ** heads`` different vectors.

    Example:
      >>> import jax
      >>> from vqjax import ProductVQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 8))
      >>> vq = ProductVQ(num_codes=16, heads=4)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> vq.apply(variables, z, train=False).indices.shape
      (2, 16, 4)

    Source: Jegou et al., 2011 (Product quantization for nearest neighbor search).
    """

    _: dataclasses.KW_ONLY
    heads: int = 2
    separate_codebooks: bool = True


class SimVQ(VectorQuantizer):
    r"""A :class:`VectorQuantizer` whose codes are one linear map of fixed random vectors.

    .. math:: e_k = W c_k,\quad c_k \sim \mathcal N(0, I/d)\ \text{fixed}

    The codebook loss updates :math:`W` and therefore all codes, including those that no token selects, so no code dies.
    Only defaults differ from :class:`VectorQuantizer`: ``codebook=FrozenCodebook(transform=LinearTransform())`` (a
    different transform or weight may be given) and ``codebook_init``.

    Variables:
      ``codebook["codes"]``, the fixed :math:`c_k`, and ``params["codebook_transform"]``, those of the transform.

    Example:
      >>> import jax
      >>> from vqjax import SimVQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = SimVQ(num_codes=16)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> slope = jax.grad(lambda params: vq.apply(variables | {"params": params}, z).loss)(variables["params"])
      >>> slope["codebook_transform"]["linear"]["kernel"].shape
      (4, 4)

    Source: Zhu et al., 2024 (arXiv 2411.02038).
    """

    _: dataclasses.KW_ONLY
    codebook: str | BaseCodebook = FrozenCodebook(transform=LinearTransform())
    codebook_init: str | Callable = "unit_normal"


def _select(
    function: Estimator | Regularizer, **settings: Array | int | str | None
) -> dict[str, Array | int | str | None]:
    """Return the settings that an estimator or a regularizer takes."""
    names = keyword_names(function)
    return {name: value for name, value in settings.items() if name in names}


def _pass_to_codes(z: Latents, q: Latents) -> Latents:
    """Pass gradients to the codes only; the estimator if a composite quantizer handles the gradient to the input."""
    return q
