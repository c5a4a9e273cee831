"""The vector quantizer: one codebook, one nearest code per token."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators import Estimator, chooses_codes, get_estimator, keyword_names
from vqjax.functional.metrics import geometry_statistics, masked_mean, perplexity, usage
from vqjax.functional.norms import normalize
from vqjax.functional.regularizers import Regularizer
from vqjax.functional.search import nearest_codes, nearest_k_codes, nearest_k_own_codes, nearest_own_codes
from vqjax.quantizers.base import (
    QuantizerOutput,
    decode_valid,
    mapped_axis,
    minus_one_where_masked,
    project,
    zero_where_masked,
)
from vqjax.quantizers.codebooks import (
    EMA,
    assigned,
    check_features,
    codes_at,
    codes_of,
    count_dead,
    create_variables,
    draw_keys,
    learn,
    per_codebook,
    per_group,
    require_mutable,
    start_from_clusters,
    stored_codes,
)
from vqjax.quantizers.lookup import Lookup, look_up
from vqjax.quantizers.transforms import LinearTransform, takes_condition
from vqjax.quantizers.validation import check_flags, check_input, is_count, is_number, is_weight, requirement


def lookup_space(vq: nn.Module, z: Float[Array, "*batch dim"]) -> Float[Array, "*tokens code_dim"]:
    """Takes inputs to where codes live, in float32.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      z: Inputs.

    Returns:
      Vectors; with several heads their axis comes before the last one.
    """
    z = z.astype(jnp.float32)
    if vq.code_dim is not None:
        z = project(vq, "project_in", z)
    if vq.heads > 1:
        z = z.reshape(*z.shape[:-1], vq.heads, z.shape[-1] // vq.heads)
    return normalize(z) if vq.metric == "cosine" else z


def output_space(vq: nn.Module, vectors: Float[Array, "*tokens code_dim"]) -> Float[Array, "*batch dim"]:
    """Takes vectors from where codes live to where the inputs came from.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      vectors: As :func:`lookup_space` returns them.

    Returns:
      Vectors of the input's dimension.
    """
    if vq.heads > 1:
        vectors = vectors.reshape(*vectors.shape[:-2], vq.heads * vectors.shape[-1])
    return project(vq, "project_out", vectors) if vq.code_dim is not None else vectors


def mask_of_heads(vq: nn.Module, mask: Bool[Array, "*batch"] | None) -> Bool[Array, "*tokens"] | None:
    """One value per token and head."""
    if mask is None or vq.heads == 1:
        return mask
    return jnp.broadcast_to(mask[..., None], (*mask.shape, vq.heads))


Tokens = Float[Array, "*tokens dim"]
TokenMask = Bool[Array, "*tokens"] | None


def distance(vq: nn.Module, x: Tokens, y: Tokens, mask: TokenMask) -> Float[Array, ""]:
    """The mean squared difference over unmasked tokens and dimensions."""
    return masked_mean(jnp.mean(jnp.square(x - y), axis=-1), mask, mapped_axis(vq))


def losses(
    vq: nn.Module, vectors: Tokens, chosen: Tokens, counts: Float[Array, "*codebooks codes"], mask: TokenMask
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the weighted loss, and each term without its weight by name.

    Args:
      vq: A ``VectorQuantizer`` with variables.
      vectors: Tokens in the space of the lookup.
      chosen: Their codes, with gradient.
      counts: Tokens per code in the global batch.
      mask: True for the tokens that count.

    Returns:
      A scalar, and scalars by name.
    """
    commitment = distance(vq, vectors, jax.lax.stop_gradient(chosen), mask)
    codebook = distance(vq, jax.lax.stop_gradient(vectors), chosen, mask)
    loss = vq.commitment_weight * commitment
    if learns_codes(vq):
        loss += (1.0 if vq.codebook_weight is None else vq.codebook_weight) * codebook
    metrics = {"quantization_error": commitment, "commitment_loss": commitment, "codebook_loss": codebook}
    for regularizer in vq.regularizers:
        metrics[regularizer.name] = _regularize(vq, regularizer, vectors, counts, mask)
        loss += regularizer.weight * metrics[regularizer.name]
    return loss, metrics


def _regularize(
    vq: nn.Module, regularizer: Regularizer, vectors: Tokens, counts: Array, mask: TokenMask
) -> Float[Array, ""]:
    value = partial(regularizer, axis_name=mapped_axis(vq), distance=vq.metric)
    if not vq.separate_codebooks:
        return value(vectors, codes_of(vq), counts, mask)
    tokens, token_mask = per_group(vq, vectors, mask)
    of_heads = jax.vmap(value, in_axes=(0, 0, 0, None if mask is None else 0))
    return jnp.mean(of_heads(tokens, codes_of(vq), counts, token_mask))


Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None
Condition = Float[Array, "*batch features"] | None

# Uniform with variance 1/dim, so that a code's expected squared length is one for any dim and number of codes.
unit_scale_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)


def check_arguments(vq: nn.Module) -> None:
    """Refuses constructor arguments that are out of range or have no effect with the others.

    Args:
      vq: A ``VectorQuantizer``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """

    check_flags(vq)
    require = requirement(vq)
    _check_parts(vq, require)
    require(
        is_count(vq.num_codes) and vq.num_codes < 2**31,
        "num_codes",
        "use a whole number of at least 1.",
    )
    require(vq.metric in ("euclidean", "cosine"), "metric", "use 'euclidean' or 'cosine'.")
    require(
        isinstance(vq.codebook_update, EMA) or vq.codebook_update in ("ema", "gradient", "none"),
        "codebook_update",
        "use 'ema', 'gradient', 'none' or vqjax.quantizers.EMA(...).",
    )
    get_estimator(vq.estimator)
    require(is_number(vq.decay) and 0 <= vq.decay < 1, "decay", "use a number in [0, 1), such as 0.99.")
    require(is_weight(vq.commitment_weight), "commitment_weight", "use a finite number of at least 0, such as 0.25.")
    require(
        is_count(vq.codebook_shards) and vq.num_codes % vq.codebook_shards == 0,
        "codebook_shards",
        f"use a whole number that divides num_codes={vq.num_codes}.",
    )
    require(
        vq.codebook_shards == 1 or not vq.separate_codebooks,
        "codebook_shards",
        "several codebooks (separate_codebooks=True) are not divided. Use 1.",
    )
    _check_replacement(vq, require)
    _check_heads(vq, require)
    _check_learned_codes(vq, require)
    _check_lookup(vq, require)


def learns_codes(vq: nn.Module) -> bool:
    """Whether a gradient moves the codes that are looked up: their own, or that of their transform."""
    transform = vq.codebook_transform
    return vq.codebook_update == "gradient" or (transform is not None and not hasattr(transform, "update"))


def _check_parts(vq: nn.Module, require: Callable) -> None:
    """What is no number; names of classes, and classes themselves, belong to configs."""
    transform, regularizers = vq.codebook_transform, vq.regularizers
    require(
        transform is None or isinstance(transform, nn.Module),
        "codebook_transform",
        "use a Flax module such as LinearTransform(), or None.",
    )
    require(callable(vq.codebook_init), "codebook_init", "use an initializer such as nn.initializers.normal(1.0).")
    known = isinstance(regularizers, tuple) and all(hasattr(r, "needs_learned_codes") for r in regularizers)
    require(known, "regularizers", "use a tuple of regularizers such as (Diversity(0.1),).")


def _check_replacement(vq: nn.Module, require: Callable) -> None:
    require(
        is_number(vq.dead_code_threshold) and 0 <= vq.dead_code_threshold < 1,
        "dead_code_threshold",
        "use a fraction of the average use, in [0, 1).",
    )
    require(
        vq.replace_unused_after is None or is_count(vq.replace_unused_after),
        "replace_unused_after",
        "use a whole number of batches, or None.",
    )
    without_inverse = vq.codebook_transform is not None and not hasattr(vq.codebook_transform, "to_base")
    for name in ("replace_dead_codes", "replace_unused_after"):
        wanted = getattr(vq, name) not in (False, None)
        frozen = vq.codebook_update == "none"
        require(not (wanted and frozen), name, "codebook_update='none' freezes the codebook. Choose one of the two.")
        require(
            not (wanted and without_inverse),
            name,
            f"a token cannot become a code through codebook_transform={type(vq.codebook_transform).__name__}, which "
            "has no inverse (method to_base). Choose one of the two.",
        )


def _check_heads(vq: nn.Module, require: Callable) -> None:
    require(is_count(vq.heads), "heads", "use a whole number of at least 1.")
    require(vq.code_dim is None or is_count(vq.code_dim), "code_dim", "use a whole number of at least 1, or None.")
    require(
        not vq.separate_codebooks or vq.heads > 1,
        "heads",
        "one head has one codebook anyway. Use at least 2, or separate_codebooks=False.",
    )


def _check_learned_codes(vq: nn.Module, require: Callable) -> None:
    by_gradient = "only codes that are learned by gradient (codebook_update='gradient', or a codebook_transform with"
    by_gradient += " parameters) have this. Leave it out."
    require(vq.codebook_weight is None or learns_codes(vq), "codebook_weight", by_gradient)
    require(
        vq.codebook_weight is None or is_weight(vq.codebook_weight), "codebook_weight", "use a number of at least 0."
    )
    require(is_weight(vq.synchronization), "synchronization", "use a finite number of at least 0, such as 0.2.")
    require(vq.synchronization == 0 or learns_codes(vq), "synchronization", by_gradient)
    for regularizer in vq.regularizers:
        require(
            learns_codes(vq) or not regularizer.needs_learned_codes,
            "regularizers",
            f"moving averages and frozen codebooks would undo {type(regularizer).__name__}: {by_gradient}",
        )
    moving = vq.codebook_update == "ema" or isinstance(vq.codebook_update, EMA)
    has_parameters = vq.codebook_transform is not None and not hasattr(vq.codebook_transform, "update")
    require(
        not (moving and has_parameters),
        "codebook_transform",
        "moving averages and the gradient of a transform would both move the codes. Use codebook_update='none' or "
        "'gradient' with it.",
    )
    require(
        not (vq.metric == "cosine" and hasattr(vq.codebook_transform, "update")),
        "codebook_transform",
        "running statistics move codes off the unit sphere of metric='cosine'. Use metric='euclidean'.",
    )


def _check_lookup(vq: nn.Module, require: Callable) -> None:
    estimator = get_estimator(vq.estimator)
    require(is_weight(vq.sampling_temperature), "sampling_temperature", "use 0, or a finite number above 0.")
    require(
        vq.sampling_temperature == 0 or not chooses_codes(estimator),
        "sampling_temperature",
        f"estimator={vq.estimator!r} chooses the codes itself. Choose one of the two.",
    )
    if takes_condition(vq.codebook_transform):
        conditioned = "a codebook per token (codebook_transform with a condition) cannot be combined with it."
        require(vq.heads == 1, "heads", conditioned)
        require(vq.sampling_temperature == 0, "sampling_temperature", conditioned)
        require(not chooses_codes(estimator), "estimator", conditioned)
        require(not vq.regularizers, "regularizers", conditioned)


def check_given(vq: nn.Module, z: Array, indices: Array | None, update_weights: Array | None) -> None:
    """Refuses indices and weights that do not fit the tokens and the codebook.

    Args:
      vq: A ``VectorQuantizer``.
      z: The tokens.
      indices: Codes chosen elsewhere, if given.
      update_weights: One per code, if given.

    Raises:
      UserError: What is wrong, and what to pass.
    """
    expected = z.shape[:-1] if vq.heads == 1 else (*z.shape[:-1], vq.heads)
    if indices is not None and (indices.shape != expected or not jnp.issubdtype(indices.dtype, jnp.integer)):
        raise UserError(
            f"indices is {indices.dtype}{list(indices.shape)}: pass integers{list(expected)}, one per token."
        )
    expected = (vq.heads, vq.num_codes) if vq.separate_codebooks else (vq.num_codes,)
    if update_weights is not None and update_weights.shape not in (expected, expected[-1:]):
        raise UserError(f"update_weights has shape {update_weights.shape}: pass one weight per code, {expected}.")


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
      ``relative_usage`` (:class:`vqjax.functional.Codebook`). With ``codebook_update="gradient"`` the codes are
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
        (:func:`vqjax.functional.search.sample_codes`) instead of the nearest.
      synchronization: Weight with which the task's gradient reaches the codes as well (:math:`\nu` of Huh et al.,
        2023, eq. 21); only where codes or their transform are learned by gradient.
      codebook_transform: Module that maps the stored codes to those that are looked up, see
        :mod:`vqjax.quantizers.transforms`.
      regularizers: Added to the loss, see :mod:`vqjax.functional.regularizers`.
      codebook_shards: How many devices hold a part of the codebook each, where it is sharded along its first axis
        (``PartitionSpec("codes")`` for the collection ``codebook``, under ``jit``, as argument and in
        ``out_shardings``): each searches its own part, and nothing of the codebook's size crosses devices. Divides
        ``num_codes``. The result is the same for any number.

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
      ((2, 8, 8, 4), (2, 8, 8), ['codes', 'counts', 'relative_usage', 'sums'])
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
        metrics |= geometry_statistics(vectors, found.codes, token_mask, mapped_axis(self))
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
        start: Literal["random", "plus_plus"] = "random",
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

        What alternating optimization minimizes between task steps (:mod:`vqjax.tasks.alternating`).

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
        if train and ("key" in keyword_names(estimator) or self.sampling_temperature > 0):
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
        return nearest_codes(vectors, codes, shards=self.codebook_shards)

    def _search(self, search: Callable, vectors: Vectors, codes: Array) -> Int[Array, "*indices"]:
        if not self.separate_codebooks:
            return search(vectors, codes)
        found = jax.vmap(search, in_axes=(-2, 0))(vectors, codes)
        return jnp.moveaxis(found, 0, vectors.ndim - 2)

    def _count(self, vectors: Vectors, indices: Int[Array, "*tokens"], mask: Mask) -> Float[Array, "*codebooks codes"]:
        tokens, token_mask = per_group(self, jax.lax.stop_gradient(vectors), mask)
        return assigned(self, tokens, indices, token_mask).counts


# Variance 1/dim: a code's expected squared length is one.
unit_scale_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)


class SimVQ(VectorQuantizer):
    r"""A :class:`VectorQuantizer` whose codes are one linear map of fixed random vectors.

    .. math:: e_k = W c_k,\quad c_k \sim \mathcal N(0, I/d)\ \text{fixed}

    The codebook loss moves :math:`W`, and with it all codes, those that no token chooses included: none die. Only
    defaults differ: ``codebook_update="none"``, ``codebook_transform=LinearTransform()`` (any other transform
    module may be given) and ``codebook_init``. Everything else is that of :class:`VectorQuantizer`.

    Variables:
      ``codebook["codes"]``, the fixed :math:`c_k`, and ``params["codebook_transform"]``, the transform's own.

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

    codebook_update: Literal["ema", "gradient", "none"] | EMA = "none"
    codebook_init: Callable = unit_scale_normal
    # Without a parent, also where it is made inside of another module: it belongs to this one.
    codebook_transform: nn.Module | None = dataclasses.field(default_factory=lambda: LinearTransform(parent=None))
