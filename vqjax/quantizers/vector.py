"""The vector quantizer: one codebook, one nearest code per token."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.codebook import (
    Assignment,
    Codebook,
    assign,
    dead_codes,
    ema_update,
    fresh_codebook,
    kmeans,
    replace_codes,
    update_usage,
)
from vqjax.errors import UserError
from vqjax.estimators import Estimator, get_estimator
from vqjax.metrics import geometry, masked_mean, perplexity, usage
from vqjax.nearest import nearest_codes
from vqjax.norms import normalize
from vqjax.quantizers.checks import check_arguments, check_input
from vqjax.quantizers.output import QuantizerOutput

# Uniform with variance 1/dim, so that a code's expected squared length is one for any dim and number of codes.
unit_scale_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)


class VectorQuantizer(nn.Module):
    r"""Replaces each vector by its nearest code, and lets the gradient cross by an estimator.

    The code :math:`q = e_i,\ i = \arg\min_k |z - e_k|^2` is the output bit for bit; its gradient with respect to
    ``z`` is the estimator's (by default the rotation trick). The loss is

    .. math:: \beta\, |z - \mathrm{sg}(q)|^2 + \alpha\, |\mathrm{sg}(z) - q|^2

    averaged over unmasked tokens and dimensions, where :math:`\alpha = 0` unless ``codebook_update="gradient"``.
    ``dim`` is taken from the last axis of the input; all other axes are batch axes.

    Variables:
      The collection ``codebook`` holds, in float32 under any input dtype, ``codes``, ``counts``, ``sums`` and
      ``usage`` (see :class:`vqjax.codebook.Codebook`). With ``codebook_update="gradient"`` the codes are
      ``params["codes"] + codebook["offsets"]``: the optimizer moves the first, and k-means and dead-code
      replacement, which are no gradient steps, write the second. With ``"none"`` there are only ``codes``.

    State and randomness:
      ``train=False`` changes nothing. ``train=True`` looks codes up first and updates the collection ``codebook``
      afterwards, so it has to be mutable. Random numbers come from the stream ``quantizer`` (initial codes,
      k-means, dead-code replacement). Under ``jit`` over a global batch the statistics are global.

    Attributes:
      num_codes: Size of the codebook.
      metric: ``"euclidean"``, or ``"cosine"``: tokens and codes are scaled to unit length before the lookup, and
        output, estimator, losses and averages live on the unit sphere.
      estimator: A name from :data:`vqjax.estimators.ESTIMATORS` or a callable ``(z, q) -> q'``.
      codebook_update: ``"ema"`` (moving averages), ``"gradient"`` (learned through the codebook loss) or
        ``"none"`` (frozen).
      decay: Of the moving averages per batch, in ``[0, 1)``.
      commitment_weight: :math:`\beta`.
      codebook_weight: :math:`\alpha`, 1 by default; only for ``codebook_update="gradient"``.
      dead_code_threshold: A code is dead while its moving-average use is below this fraction of the average use
        (tokens / codes).
      replace_dead_codes: Replace dead codes by random tokens of the batch after each update.
      codebook_init: Initializer of the ``[num_codes, dim]`` codes.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Not needed, and
        wrong, under plain ``jit``. Pass every device the same ``quantizer`` key; average gradients over the axis.

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
    codebook_update: Literal["ema", "gradient", "none"] = "ema"
    decay: float = 0.99
    commitment_weight: float = 0.25
    codebook_weight: float | None = None
    dead_code_threshold: float = 0.01
    replace_dead_codes: bool = False
    codebook_init: Callable = unit_scale_uniform
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "*batch dim"],
        mask: Bool[Array, "*batch"] | None = None,
        train: bool = False,
    ) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no
            gradient, and come back as zero vectors with index -1.
          train: Update the codebook after the lookup.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``commitment_loss`` and
          ``codebook_loss`` (unweighted; equal in value, different in gradient), ``perplexity`` and ``usage`` of
          this batch, ``norm_ratio`` (mean |q|/|z|), ``angle`` (mean, radians) and, unless the codebook is frozen,
          ``dead_codes`` (number, by the moving average, before any replacement).

        Raises:
          UserError: ``train=True`` with an immutable ``codebook``; no ``quantizer`` key where one is needed; a
            ``z`` or ``mask`` of the wrong kind.
        """
        check_input(z, mask)
        if self.is_initializing():
            self._create_variables(z.shape[-1])
        self._check_features(z.shape[-1])
        z = _zero_where_masked(z, mask)
        vectors, codes = self._lookup_space(z), self._codes()
        indices = nearest_codes(vectors, codes)
        chosen = codes[indices]
        quantized = get_estimator(self.estimator)(vectors, chosen.astype(z.dtype))
        batch = self._assign(vectors, indices, mask)
        loss, metrics = self._losses(vectors, chosen, mask)
        metrics |= {"perplexity": perplexity(batch.counts), "usage": usage(batch.counts)}
        metrics |= geometry(vectors, chosen, mask, self._mapped_axis())
        if self.codebook_update != "none":
            metrics["dead_codes"] = self._update(vectors, batch, mask, train and not self.is_initializing())
        indices = indices if mask is None else jnp.where(mask, indices, -1)
        return QuantizerOutput(_zero_where_masked(quantized, mask), indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None = None) -> Int[Array, "*batch"]:
        """Returns the index of each vector's nearest code.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices.
        """
        check_input(z, mask)
        self._check_features(z.shape[-1])
        indices = nearest_codes(self._lookup_space(z), self._codes())
        return indices if mask is None else jnp.where(mask, indices, -1)

    def decode(self, indices: Integer[Array, "*batch"]) -> Float[Array, "*batch dim"]:
        """Returns the codes of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector. Anything
            else becomes NaN, which shows, instead of another code, which would not.

        Returns:
          Vectors in float32.
        """
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise UserError(f"indices has dtype {indices.dtype}: decode takes integers, as encode returns them.")
        codes = self._codes()
        # In the caller's dtype -1 and num_codes might not exist: token files hold uint8.
        indices = indices.astype(jnp.int32)
        valid = (indices >= 0) & (indices < self.num_codes)
        vectors = codes[jnp.where(valid, indices, 0)]
        invalid = jnp.where(indices == -1, 0.0, jnp.nan)
        return jnp.where(valid[..., None], vectors, invalid[..., None])

    def kmeans_init(
        self,
        z: Float[Array, "*batch dim"],
        mask: Bool[Array, "*batch"] | None = None,
        *,
        iterations: int = 10,
    ) -> None:
        """Starts the codebook from the clusters of a batch.

        Call it once, before training, as
        ``_, updates = vq.apply(variables, z, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": key})``.

        Args:
          z: The vectors to cluster, better many times ``num_codes``.
          mask: True for valid tokens; at least one has to be.
          iterations: Of Lloyd's algorithm.

        Raises:
          UserError: The collection ``codebook`` is immutable, or there is no ``quantizer`` key.
        """
        check_input(z, mask)
        self._check_features(z.shape[-1])
        if z.size == 0:
            raise UserError(f"z has shape {z.shape}: kmeans_init takes at least one token.")
        self._require_mutable("kmeans_init(z)")
        unit_norm = self.metric == "cosine"
        tokens, mask = self._all_tokens(self._lookup_space(_zero_where_masked(z, mask)), mask)
        key = self._key("kmeans_init")
        self._store(kmeans(key, tokens, self.num_codes, iterations=iterations, unit_norm=unit_norm, mask=mask))

    def _create_variables(self, dim: int) -> None:
        shape = (self.num_codes, dim)
        if self.codebook_update == "gradient":
            self.param("codes", self.codebook_init, shape, jnp.float32)
            self.variable("codebook", "offsets", jnp.zeros, shape, jnp.float32)
            self.variable("codebook", "usage", jnp.ones, self.num_codes, jnp.float32)
        elif not self.has_variable("codebook", "codes"):
            codes = self.codebook_init(self.make_rng("quantizer"), shape, jnp.float32)
            fresh = fresh_codebook(normalize(codes) if self.metric == "cosine" else codes)
            for name in ["codes"] if self.codebook_update == "none" else fresh._fields:
                self.variable("codebook", name, getattr(fresh, name).copy)

    def _check_features(self, dim: int) -> None:
        stored = self._codes().shape
        if stored != (self.num_codes, dim):
            raise UserError(
                f"z has {dim} features and num_codes={self.num_codes}, but the codebook in the variables has shape "
                f"{stored}: pass z of {stored[-1]} features, or initialize anew."
            )

    def _codes(self) -> Float[Array, "codes dim"]:
        gradient = self.codebook_update == "gradient"
        needed = {"params": "codes", "codebook": "offsets"} if gradient else {"codebook": "codes"}
        if not all(self.has_variable(collection, name) for collection, name in needed.items()):
            raise UserError(
                "The variables hold no codebook: create them with init(key, z), and pass all collections on "
                "to apply, not params alone."
            )
        if not gradient:
            return self.get_variable("codebook", "codes")
        codes = self.get_variable("params", "codes") + self.get_variable("codebook", "offsets")
        return normalize(codes) if self.metric == "cosine" else codes

    def _lookup_space(self, z: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        z = z.astype(jnp.float32)
        return normalize(z) if self.metric == "cosine" else z

    def _assign(
        self,
        vectors: Float[Array, "*batch dim"],
        indices: Int[Array, "*batch"],
        mask: Bool[Array, "*batch"] | None,
    ) -> Assignment:
        tokens, mask = _flatten(vectors, mask)
        batch = assign(tokens, indices.reshape(-1), self.num_codes, mask)
        axis_name = self._mapped_axis()
        return batch if axis_name is None else jax.lax.psum(batch, axis_name)

    def _losses(
        self,
        vectors: Float[Array, "*batch dim"],
        chosen: Float[Array, "*batch dim"],
        mask: Bool[Array, "*batch"] | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        def distance(x: Float[Array, "*batch dim"], y: Float[Array, "*batch dim"]) -> Float[Array, ""]:
            return masked_mean(jnp.mean(jnp.square(x - y), axis=-1), mask, self._mapped_axis())

        commitment = distance(vectors, jax.lax.stop_gradient(chosen))
        codebook = distance(jax.lax.stop_gradient(vectors), chosen)
        loss = self.commitment_weight * commitment
        if self.codebook_update == "gradient":
            loss += (1.0 if self.codebook_weight is None else self.codebook_weight) * codebook
        metrics = {"quantization_error": commitment, "commitment_loss": commitment, "codebook_loss": codebook}
        return loss, metrics

    def _update(
        self,
        vectors: Float[Array, "*batch dim"],
        batch: Assignment,
        mask: Bool[Array, "*batch"] | None,
        train: bool,
    ) -> Float[Array, ""]:
        """Updates the state when training; returns the number of dead codes before replacement."""
        state = self._current_codebook()
        if train:
            self._require_mutable("train=True")
            if self.codebook_update == "ema":
                state = ema_update(state, batch, decay=self.decay, unit_norm=self.metric == "cosine")
            state = state._replace(usage=update_usage(state.usage, batch.counts, decay=self.decay))
        dead = dead_codes(state.usage, self.dead_code_threshold)
        if train:
            if self.replace_dead_codes:
                tokens, mask = self._all_tokens(vectors, mask)
                state = replace_codes(self._key("replace_dead_codes=True"), state, dead, tokens, mask)
            self._store(state)
        return jnp.sum(dead, dtype=jnp.float32)

    def _current_codebook(self) -> Codebook:
        if self.codebook_update == "ema":
            return Codebook(**{name: self.get_variable("codebook", name) for name in Codebook._fields})
        return fresh_codebook(jax.lax.stop_gradient(self._codes()))._replace(
            usage=self.get_variable("codebook", "usage")
        )

    def _store(self, state: Codebook) -> None:
        values = state._asdict()
        if self.codebook_update == "gradient":
            moved = jnp.any(state.codes != self._codes(), axis=-1, keepdims=True)
            learned = self.get_variable("params", "codes")
            offsets = jnp.where(moved, state.codes - learned, self.get_variable("codebook", "offsets"))
            values = {"offsets": offsets, "usage": state.usage}
        elif self.codebook_update == "none":
            values = {"codes": state.codes}
        for name, value in values.items():
            self.put_variable("codebook", name, jax.lax.stop_gradient(value))

    def _all_tokens(
        self, vectors: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None
    ) -> tuple[Float[Array, "tokens dim"], Bool[Array, " tokens"] | None]:
        """The tokens of all devices, and which of them may become codes."""
        tokens, mask = _flatten(vectors, mask)
        if self.metric == "cosine":
            # A zero token has no direction. As a code it would win every token more than 60 degrees from the others.
            directed = jnp.any(tokens != 0, axis=-1)
            mask = directed if mask is None else mask & directed
        flat = (tokens, mask)
        if self.axis_name is None:
            return flat
        # "invarying" tells shard_map that every device holds the same result, which it cannot infer.
        return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis_name, tiled=True, to="invarying"), flat)

    def _mapped_axis(self) -> str | None:
        """The axis of the statistics; none in ``init``, which runs outside of the mapped function."""
        return None if self.is_initializing() else self.axis_name

    def _require_mutable(self, what: str) -> None:
        if not self.is_mutable_collection("codebook"):
            raise UserError(
                f"{what} updates the collection 'codebook', which is immutable in this apply. Write\n"
                "  out, updates = vq.apply(variables, z, train=True, mutable=['codebook'])\n"
                "  variables = variables | updates\n"
                "or pass train=False to leave the codebook as it is."
            )

    def _key(self, what: str) -> Array:
        if not self.has_rng("quantizer"):
            raise UserError(f"{what} draws random tokens: pass rngs={{'quantizer': key}} to apply.")
        return self.make_rng("quantizer")


def _zero_where_masked(x: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> Float[Array, "*batch dim"]:
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))


def _flatten(
    vectors: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None
) -> tuple[Float[Array, "tokens dim"], Bool[Array, " tokens"] | None]:
    return vectors.reshape(-1, vectors.shape[-1]), None if mask is None else mask.reshape(-1)
