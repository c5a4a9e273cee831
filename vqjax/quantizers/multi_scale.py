"""The multi-scale quantizer: a feature map as tokens from coarse to fine."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators.jacobian import with_gradient_of
from vqjax.functional.numbers import Number, is_number
from vqjax.functional.resampling import adaptive_average_pool, interpolate_linearly
from vqjax.quantizers.base import QuantizerOutput, int32_indices, zero_where_masked
from vqjax.quantizers.residual import StagedQuantizer, keep_stage
from vqjax.quantizers.transforms import takes_condition
from vqjax.quantizers.validation import is_count, require, require_count
from vqjax.quantizers.vector import VectorQuantizer

Map = Float[Array, "*space dim"]
Mask = Bool[Array, "*space"] | None
Tokens = Int[Array, "*batch tokens"]

# Metrics of a shared codebook, from its joint update with the tokens of all scales.
_METRICS_OF_CODEBOOK = ("dead_codes", "perplexity", "usage")


class Phi(nn.Module):
    r"""A convolution over three positions along each axis of space, mixed with the map itself.

    .. math:: \phi(x) = (1 - \rho)\, x + \rho\, \mathrm{conv}(x)

    Attributes:
      weight: :math:`\rho`, in (0, 1].
      spatial_dims: Number of axes of space.

    Source: Tian et al., 2024 (arXiv 2404.02905), Section 3.2; the mixture is that of the authors' code.
    """

    weight: Number
    spatial_dims: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Refine a map."""
        window = (3,) * self.spatial_dims
        convolution = nn.Conv(x.shape[-1], window, precision=jax.lax.Precision.HIGHEST, name="convolution")
        return (1 - self.weight) * x + self.weight * convolution(x)


class MultiScaleVQ(StagedQuantizer):
    r"""Quantizer of feature maps into tokens from coarse to fine: each scale quantizes what the coarser ones leave.

    .. math::
      r_1 = z,\quad q_s = \mathrm{VQ}(\mathrm{pool}_s(r_s)),\quad p_s = \phi_s(\mathrm{interpolate}(q_s)),\quad
      r_{s+1} = r_s - \mathrm{sg}(p_s),\quad q = \sum_s p_s

    where :math:`\phi(x) = (1 - \rho)\, x + \rho\, \mathrm{conv}(x)` repairs what interpolation blurs. Averaging reduces
    the map to each scale, and linear interpolation restores the size of the input, which may be any. The loss is the
    mean of the scales' losses, each for its own pooled residual.

    The tokens of all scales are one sequence, coarse to fine and within a scale row by row, for an autoregressive
    model of scales. A mask keeps positions out of every average; windows without any other position have token -1,
    and a scale without any token adds nothing.

    Variables:
      Those of ``quantizer`` under ``stages_0``, with a codebook per scale also under ``stages_1`` and so on; the
      convolutions in ``params`` under ``phi_0`` and so on.

    Attributes:
      quantizer: Template of the scales: the :class:`VectorQuantizer` that every scale has a copy of, with all its
        options, its estimator included; of one head.
      scales: Size of the token map at each scale, coarse to fine: a number for all axes, or one per axis.
      spatial_dims: Number of axes of space (1, 2 or 3) before the features.
      shared_codebook: One codebook for all scales, updated once per batch with the tokens of all.
      phi_weight: :math:`\rho`, in (0, 1]; None for no convolutions.
      num_phi: Number of convolutions, spread evenly over the scales; None for one per scale.
      gradient: ``"total"``: the estimator is applied once, from the reconstruction to the input, and gradients to the
        encoder do not grow with the number of scales; convolutions receive the gradient of the reconstruction, codes
        that times ``sync_nu``. ``"per_scale"``: it is applied in every scale, residuals included.
      dropout: Probability with which an example (first axis) of a training batch keeps only its first scales; None
        disables dropout.
      dropout_min_scales: Number of scales that dropout always keeps.

    Raises:
      UserError: Raised by the constructor if an argument is out of range, or is set but would have no effect.

    Example:
      >>> import jax
      >>> from vqjax import MultiScaleVQ, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = MultiScaleVQ(VectorQuantizer(num_codes=16), scales=(1, 2, 4))
      >>> variables = jax.jit(vq.init)(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.indices.shape
      ((2, 8, 8, 4), (2, 21))
      >>> indices = vq.apply(variables, z, method="encode")
      >>> [tokens.shape for tokens in vq.split(indices)]
      [(2, 1, 1), (2, 2, 2), (2, 4, 4)]
      >>> vq.apply(variables, indices, shape=(8, 8), method="decode").shape
      (2, 8, 8, 4)

    Source: Tian et al., 2024 (arXiv 2404.02905), Algorithms 1 and 2.
    """

    automatic_methods = (*StagedQuantizer.automatic_methods, "decode_scales")
    quantizes_maps = True

    quantizer: VectorQuantizer
    scales: Sequence[int | Sequence[int]]
    spatial_dims: int = 2
    shared_codebook: bool = True
    phi_weight: Number | None = 0.5
    num_phi: int | None = 1
    gradient: Literal["total", "per_scale"] = "total"
    dropout: Number | None = None
    dropout_min_scales: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        template = self.quantizer
        require(isinstance(template, VectorQuantizer), "quantizer", template, "a VectorQuantizer(...)")
        require_count("spatial_dims", self.spatial_dims, largest=3)
        given = isinstance(self.scales, Sequence) and len(self.scales) > 0
        require(given, "scales", self.scales, "at least one scale, such as (1, 2, 4)")
        for scale in self.scales:
            self._check_shape("scales", scale)
        # A module has to be hashable, and lists come from configs.
        object.__setattr__(self, "scales", tuple(s if is_count(s) else tuple(s) for s in self.scales))
        grows = bool(np.all(np.diff(np.array(self.shapes), axis=0) >= 0))
        require(grows, "scales", self.scales, "from coarse to fine, no size smaller than before")
        in_range = self.phi_weight is None or is_number(self.phi_weight, lambda weight: 0 < weight <= 1)
        require(in_range, "phi_weight", self.phi_weight, "a number in (0, 1], or None for no convolutions")
        if self.num_phi is not None:
            require_count("num_phi", self.num_phi, largest=len(self.scales))
        require_count("dropout_min_scales", self.dropout_min_scales, largest=len(self.scales))
        kept, advice = self.dropout_min_scales, "nothing is dropped without dropout"
        require(self.dropout is not None or kept == 1, "dropout_min_scales", kept, "1", advice)
        require(template.heads == 1, "quantizer.heads", template.heads, "1, as a token of a scale has one index")
        transform = template.codebook.transform
        fixed = not takes_condition(transform)
        require(
            fixed, "quantizer.codebook.transform", transform, "one without a condition, which the scales do not have"
        )
        self._check_stages("per_scale")

    def setup(self) -> None:
        count = 1 if self.shared_codebook else len(self.scales)
        self.stages = [self._make_stage() for _ in range(count)]
        count = len(self.scales) if self.num_phi is None else self.num_phi
        phis = range(0 if self.phi_weight is None else count)
        self.phi = [Phi(self.phi_weight, self.spatial_dims) for _ in phis]

    @property
    def num_codes(self) -> int:
        """The number of codes of a scale."""
        return self.quantizer.num_codes

    @property
    def index_shape(self) -> tuple[int, ...]:
        """One axis of the tokens of all scales, which follows the axes before those of space."""
        return (sum(math.prod(shape) for shape in self.shapes),)

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks for which usage is counted, one even if every scale has its own."""
        return 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The size of the token map at each scale along each axis."""
        return tuple(self._sizes(scale) for scale in self.scales)

    def __call__(
        self,
        z: Map,
        mask: Mask = None,
        train: bool | None = None,
        condition: Float[Array, "*space features"] | None = None,
    ) -> QuantizerOutput:
        """Quantize maps.

        Args:
          z: Any leading axes, ``spatial_dims`` axes of space of any size, features; any floating-point dtype.
          mask: True for valid positions. The others take no part in averages, losses or statistics, receive no
            gradient, and come back as zero vectors.
          train: Update the codebooks after the lookup, and apply dropout if configured; as for ``quantizer``.
          condition: None; the codes do not depend on one.

        Returns:
          The reconstruction, int32 indices ``[..., tokens]`` (-1 for windows without valid positions, and in dropped
          scales), the mean of the scales' losses, and these metrics:

          * ``quantization_error``, ``relative_error``, ``norm_ratio``, ``angle``, ``rms_latents`` and ``rms_codes`` of
            the reconstruction;
          * ``quantization_error_0``, ``perplexity_0``, ``usage_0`` and so on: those of the tokens of each scale; with a
            codebook per scale also ``dead_codes_0`` and so on;
          * ``perplexity``, ``usage`` and ``dead_codes`` of the shared codebook; with a codebook per scale, their means
            over scales, and the sum of the dead codes;
          * the mean over scales of all other metrics.

        Raises:
          UserError: As :class:`VectorQuantizer`.
        """
        self._check_input(z, mask, condition)
        return self._quantize(z, mask, self._is_training(train))

    def _quantize(self, z: Map, mask: Mask, train: bool) -> QuantizerOutput:
        x = zero_where_masked(z, mask).astype(jnp.float32)
        if self.is_initializing():
            for stage in self.stages:
                stage(x)
        depths = None
        if train and self.dropout is not None:
            examples = z.shape[0] if z.ndim > self.spatial_dims + 1 else 1
            depths = self._draw_depths(examples, len(self.scales), self.dropout_min_scales)
        tokens, masks, outputs = [], [], []

        def quantize(scale: int, pooled: Map, pooled_mask: Mask) -> tuple[Map, Int[Array, "*space"]]:
            tokens.append(pooled)
            masks.append(keep_stage(scale, depths, pooled_mask, pooled.shape[:-1]))
            settings = {"train": train, "update": not self.shared_codebook}
            outputs.append(self._quantizer_at(scale).assign(pooled, None, masks[-1], **settings))
            return outputs[-1].quantized, outputs[-1].indices

        total = self._descend(x, mask, quantize)
        indices = join_scales([output.indices for output in outputs], self.spatial_dims)
        metrics = self._stage_metrics(x, total, mask, outputs)
        if self.shared_codebook:
            joined = join_scales(tokens, self.spatial_dims, features=1), indices, join_scales(masks, self.spatial_dims)
            joint = self.stages[0].assign(*joined, train)
            metrics |= {name: joint.metrics[name] for name in _METRICS_OF_CODEBOOK if name in joint.metrics}
        loss = sum(output.loss for output in outputs) / len(outputs)
        if self.gradient == "total":
            crossed = self._apply_estimator(x, jax.lax.stop_gradient(total), mask, train)
            total = with_gradient_of(crossed, crossed + total)
        quantized = zero_where_masked(total.astype(z.dtype), mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Map, mask: Mask = None) -> Tokens:
        """Return the indices of all scales.

        Args:
          z: As in the call.
          mask: As in the call.

        Returns:
          int32 indices along one last axis, coarse to fine; :meth:`split` returns them by scale.
        """
        self._check_input(z, mask)
        return self._quantize(z, mask, train=False).indices

    def decode(
        self, indices: Integer[Array | np.ndarray, "*batch tokens"], shape: int | Sequence[int] | None = None
    ) -> Map:
        """Return the map of indices: with the shape of ``z``, ``decode(encode(z))`` equals ``quantized`` in float32.

        With a mask that holds at unmasked positions: indices do not say which positions were masked.

        Args:
          indices: Indices of any integer dtype, along the last axis as ``encode`` returns them. The tokens of the first
            scales alone give a coarser map. Index -1 is the zero vector, and a scale of -1 alone adds nothing; others
            out of range make their whole map NaN.
          shape: Size of the map; by default that of the last scale.

        Returns:
          Vectors in float32.
        """
        return self.decode_scales(indices, shape)[-1]

    def decode_scales(
        self, indices: Integer[Array | np.ndarray, "*batch tokens"], shape: int | Sequence[int] | None = None
    ) -> tuple[Map, ...]:
        """Return the maps of the first scale alone, of the first two and so on; the last is that of ``decode``.

        Args:
          indices: As in ``decode``.
          shape: As in ``decode``.

        Returns:
          A map in float32 for each scale that is there.
        """
        indices = int32_indices(indices, self.num_codes)
        shape = self.shapes[-1] if shape is None else shape
        self._check_shape("shape", shape)
        space, parts = self._sizes(shape), enumerate(self.split(indices))
        spread = (self._spread(s, self._quantizer_at(s).decode(part), part, space) for s, part in parts)
        return tuple(itertools.accumulate(spread))

    def split(self, indices: Integer[Array, "*batch tokens"]) -> tuple[Integer[Array, "..."], ...]:
        """Split the sequence of tokens by scale, also that of the first scales only.

        Args:
          indices: Along the last axis as ``encode`` returns them.

        Returns:
          Indices ``[..., *scale]`` of each scale that is there.
        """
        return split_scales(indices, self.shapes)

    def code_vectors(self) -> tuple[Any, ...]:
        """Return the codes of each scale, as its quantizer's ``code_vectors`` does."""
        return tuple(self._quantizer_at(scale).code_vectors() for scale in range(len(self.scales)))

    def kmeans_init(
        self, z: Map, mask: Mask = None, *, iterations: int = 10, start: Literal["random", "plus_plus"] = "random"
    ) -> None:
        """Initialize the codebooks with k-means, as :meth:`VectorQuantizer.kmeans_init`, which shows how to call it.

        A shared codebook is initialized from the tokens of all scales, with residuals as an infinitely fine codebook
        would leave them. A codebook per scale is initialized from the tokens that the clusters of the coarser scales
        leave; the coarsest have few, so pass many examples.

        Args:
          z: As in the call.
          mask: True for valid positions.
          iterations: Number of iterations of Lloyd's algorithm.
          start: Initial cluster centers: random tokens, or those of k-means++.
        """
        self._check_input(z, mask)
        tokens, masks = [], []

        def quantize(scale: int, pooled: Map, pooled_mask: Mask) -> tuple[Map, None]:
            tokens.append(pooled)
            masks.append(pooled_mask)
            quantizer = self._quantizer_at(scale)
            if self.shared_codebook:
                return quantizer.bypass(pooled), None
            quantizer.kmeans_init(pooled, pooled_mask, iterations=iterations, start=start)
            return quantizer.decode(quantizer.encode(pooled, pooled_mask)), None

        self._descend(zero_where_masked(z, mask).astype(jnp.float32), mask, quantize)
        if self.shared_codebook:
            joined = join_scales(tokens, self.spatial_dims, features=1), join_scales(masks, self.spatial_dims)
            self.stages[0].kmeans_init(*joined, iterations=iterations, start=start)

    def _descend(self, x: Map, mask: Mask, quantize: Callable) -> Map:
        """Go from coarse to fine with ``quantize(scale, pooled, pooled_mask) -> (codes, indices)``; return the sum."""
        space, residual, parts = x.shape[-1 - self.spatial_dims : -1], x, []
        for scale, shape in enumerate(self.shapes):
            codes, indices = quantize(scale, *adaptive_average_pool(residual, shape, mask))
            parts.append(self._spread(scale, codes, indices, space))
            residual -= jax.lax.stop_gradient(parts[-1]) if self.gradient == "total" else parts[-1]
        return reduce(add, parts)

    def _spread(
        self,
        scale: int,
        codes: Float[Array, "*tokens dim"],
        indices: Int[Array, "*tokens"] | None,
        space: tuple[int, ...],
    ) -> Map:
        """Return the part of a scale in the reconstruction."""
        part = interpolate_linearly(codes, space)
        if self.phi:
            last = len(self.scales) - 1
            part = self.phi[round(scale / max(last, 1) * (len(self.phi) - 1))](part)
        if indices is None:
            return part
        # Without tokens the bias of the convolution would be left.
        axes = tuple(range(-self.spatial_dims, 0))
        present = jnp.any(indices != -1, axis=axes, keepdims=True)[..., None]
        return jnp.where(present, part, jnp.zeros_like(part))

    def _make_stage(self) -> VectorQuantizer:
        options = {"estimator": _detach_codes} if self.gradient == "total" else {}
        return self.quantizer.clone(name=None, **options)

    def _quantizer_at(self, scale: int) -> VectorQuantizer:
        return self.stages[0 if self.shared_codebook else scale]

    def _sizes(self, shape: int | Sequence[int]) -> tuple[int, ...]:
        """Return the size along each axis of space."""
        return (shape,) * self.spatial_dims if is_count(shape) else tuple(shape)

    def _check_shape(self, name: str, value: object) -> None:
        each = isinstance(value, Sequence) and len(value) == self.spatial_dims and all(is_count(size) for size in value)
        expected = f"a positive integer, or {self.spatial_dims} of them, one per axis of space"
        require(is_count(value) or each, name, value, expected)

    def _check_input(self, z: Map, mask: Mask, condition: Float[Array, "*space features"] | None = None) -> None:
        super()._check_input(z, mask, condition)
        space = z.shape[-1 - self.spatial_dims : -1]
        expected = f"a map with {self.spatial_dims} axes of space (spatial_dims), none empty, before its features"
        require(len(space) == self.spatial_dims and 0 not in space, "z", z.shape, expected)


def join_scales(
    maps: Sequence[Float[Array, "..."] | Integer[Array, "..."] | Bool[Array, "..."] | None],
    spatial_dims: int,
    features: int = 0,
) -> Array | None:
    """Join maps of several sizes into one axis of tokens, each row by row.

    Args:
      maps: One per scale, coarse to fine, with the same leading axes; or None for each.
      spatial_dims: Number of axes of space.
      features: Number of axes after those of space.

    Returns:
      One axis of tokens in place of the axes of space; None for None.

    Example:
      >>> import jax.numpy as jnp
      >>> join_scales([jnp.zeros((5, 1, 1), int), jnp.zeros((5, 2, 2), int)], spatial_dims=2).shape
      (5, 5)
    """
    if maps[0] is None:
        return None
    first = maps[0].ndim - features - spatial_dims
    last = first + spatial_dims
    flat = [x.reshape(*x.shape[:first], math.prod(x.shape[first:last]), *x.shape[last:]) for x in maps]
    return jnp.concatenate(flat, axis=first)


def split_scales(
    indices: Integer[Array, "*batch tokens"], shapes: Sequence[tuple[int, ...]]
) -> tuple[Integer[Array, "..."], ...]:
    """Invert :func:`join_scales` for indices, also for those of the first scales only.

    Args:
      indices: Tokens along the last axis.
      shapes: Size of the map of each scale, coarse to fine.

    Returns:
      Indices ``[..., *shape]`` of each scale that is there.

    Raises:
      UserError: The tokens end within a scale.

    Example:
      >>> import jax.numpy as jnp
      >>> [tokens.tolist() for tokens in split_scales(jnp.arange(3), [(1,), (2,), (4,)])]
      [[0], [1, 2]]
    """
    ends = tuple(itertools.accumulate(math.prod(shape) for shape in shapes))
    if indices.ndim < 1 or indices.shape[-1] not in ends:
        raise UserError(
            f"indices must end with a scale, after one of {ends} tokens along the last axis, got shape "
            f"{indices.shape}; pass them as encode returns them."
        )
    parts = jnp.split(indices, ends[: ends.index(indices.shape[-1])], axis=-1)
    return tuple(part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=False))


def _detach_codes(z: Map, q: Map) -> Map:
    """Hold the codes constant; the estimator of a scale if the gradient is that of the reconstruction."""
    return jax.lax.stop_gradient(q)
