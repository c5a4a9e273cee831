"""The multi-scale vector quantizer: a map in tokens from coarse to fine."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator, keyword_names, straight_through
from vqjax.estimators.jacobian import with_gradient_of
from vqjax.functional.resampling import adaptive_average_pool, interpolate_linearly
from vqjax.quantizers.base import QuantizerOutput, draw_key, int32_indices, mapped_axis, zero_where_masked
from vqjax.quantizers.residual import combined_metrics, draw_depths, mean_or_total
from vqjax.quantizers.transforms import takes_condition
from vqjax.quantizers.validation import check_flags, check_input, check_template, is_count, is_number, requirement
from vqjax.quantizers.vector import VectorQuantizer


class Refinement(nn.Module):
    r"""A convolution over three positions along each axis of space, mixed with the map itself.

    .. math:: \phi(x) = (1 - \rho)\, x + \rho\, \mathrm{conv}(x)

    Attributes:
      amount: :math:`\rho`, in [0, 1]; 0 has no convolution.
      spatial_dims: Number of axes of space.

    Source: Tian et al., 2024 (arXiv 2404.02905), Section 3.2; the mixture is that of the authors' code.
    """

    amount: float
    spatial_dims: int

    @nn.compact
    def __call__(self, x: Float[Array, "*space dim"]) -> Float[Array, "*space dim"]:
        """Refines a map."""
        if self.amount == 0:
            return x
        window = (3,) * self.spatial_dims
        convolution = nn.Conv(x.shape[-1], window, precision=jax.lax.Precision.HIGHEST, name="convolution")
        return (1 - self.amount) * x + self.amount * convolution(x)


def join_scales(
    maps: Sequence[Float[Array, "..."] | Integer[Array, "..."] | Bool[Array, "..."] | None],
    spatial_dims: int,
    features: int = 0,
) -> Array | None:
    """Puts maps of several sizes behind each other, each row by row.

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
    flat = [x.reshape(*x.shape[:first], -1, *x.shape[first + spatial_dims :]) for x in maps]
    return jnp.concatenate(flat, axis=first)


def split_scales(
    indices: Integer[Array, "*batch tokens"], shapes: Sequence[tuple[int, ...]]
) -> tuple[Integer[Array, "..."], ...]:
    """The inverse of :func:`join_scales` for indices, also for those of the first scales only.

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
        raise UserError(f"indices has shape {indices.shape}: its last axis has to end with a scale, one of {ends}.")
    parts = jnp.split(indices, ends[: ends.index(indices.shape[-1])], axis=-1)
    return tuple(part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=False))


def sizes(scale: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """The size along each axis of space.

    Args:
      scale: One number for all axes, or one per axis.
      spatial_dims: Number of axes.

    Returns:
      One number per axis.
    """
    return (scale,) * spatial_dims if is_count(scale) else tuple(scale)


def check_shape(name: str, value: object, spatial_dims: int) -> None:
    """Refuses what is not the size of a map.

    Args:
      name: Of the argument.
      value: What was passed.
      spatial_dims: Number of axes of space.

    Raises:
      UserError: It is neither a number nor one number per axis.
    """
    each = isinstance(value, Sequence) and len(value) == spatial_dims and all(is_count(size) for size in value)
    if not (is_count(value) or each):
        raise UserError(
            f"{name}={value!r} is not allowed: use a whole number of at least 1, or {spatial_dims} of them, one per "
            "axis of space."
        )


def check_multi_scale(vq: nn.Module) -> None:
    """Refuses constructor arguments that are out of range or have no effect with the others.

    Args:
      vq: A ``MultiScaleVQ``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """

    require = requirement(vq)
    check_template(vq)
    check_flags(vq)
    require(is_count(vq.spatial_dims) and vq.spatial_dims <= 3, "spatial_dims", "use 1, 2 or 3.")
    require(isinstance(vq.scales, Sequence) and len(vq.scales) > 0, "scales", "use at least one scale, such as (1, 2).")
    for scale in vq.scales:
        check_shape("a scale", scale, vq.spatial_dims)
    shapes = np.array([sizes(scale, vq.spatial_dims) for scale in vq.scales])
    require(bool(np.all(np.diff(shapes, axis=0) >= 0)), "scales", "go from coarse to fine: no size may decrease.")
    require(is_number(vq.refinement) and 0 <= vq.refinement <= 1, "refinement", "use a number in [0, 1], such as 0.5.")
    count = len(vq.scales)
    whole = vq.num_refinements == 0 and is_number(vq.num_refinements)
    require(
        whole or (is_count(vq.num_refinements) and vq.num_refinements <= count),
        "num_refinements",
        f"use a whole number in [1, {count}], the number of scales, or 0 for one per scale.",
    )
    require(vq.gradient in ("total", "per_scale"), "gradient", "use 'total' or 'per_scale'.")
    require(is_number(vq.dropout) and 0 <= vq.dropout <= 1, "dropout", "use a probability in [0, 1].")
    require(
        is_count(vq.fewest_scales) and vq.fewest_scales <= count,
        "fewest_scales",
        f"use a whole number in [1, {count}], the number of scales.",
    )
    _check_template(vq)


def check_space(vq: nn.Module, z: Float[Array, "*space dim"]) -> None:
    """Refuses an input without the axes of space.

    Args:
      vq: A ``MultiScaleVQ``.
      z: The input.

    Raises:
      UserError: It has too few axes, or none of size one or more.
    """
    space = z.shape[-1 - vq.spatial_dims : -1]
    if z.ndim <= vq.spatial_dims or 0 in space:
        raise UserError(
            f"z has shape {z.shape}: it needs {vq.spatial_dims} axes of space (spatial_dims) of at least one position "
            "before its features."
        )


def _check_template(vq: nn.Module) -> None:
    template, estimator = vq.quantizer, get_estimator(vq.quantizer.estimator)
    if template.heads > 1:
        raise UserError(f"quantizer.heads={template.heads} is not allowed: a token of a scale has one index. Use 1.")
    if takes_condition(template.codebook.transform):
        name = type(template.codebook.transform).__name__
        raise UserError(f"quantizer.codebook.transform={name} is not allowed: the scales have no condition for it.")
    if vq.shared_codebook and chooses_codes(estimator):
        raise UserError(
            f"quantizer.estimator={template.estimator!r} chooses the codes itself, and a shared codebook is updated "
            "with the codes of all scales: use shared_codebook=False, or another estimator."
        )
    if vq.gradient == "per_scale":
        return
    if keyword_names(estimator) & {"codes", "indices", "num_codes"}:
        raise UserError(
            f"quantizer.estimator={template.estimator!r} needs the codebook of a scale, and gradient='total' crosses "
            "all scales at once: use gradient='per_scale', or another estimator."
        )
    if template.codebook_dim is not None:
        raise UserError(
            f"quantizer.codebook_dim={template.codebook_dim} projects within each scale, and those projections learn "
            "only where the gradient crosses in each scale: use gradient='per_scale', or project outside."
        )


Map = Float[Array, "*space dim"]
Mask = Bool[Array, "*space"] | None
Tokens = Int[Array, "*batch tokens"]

# What the joint update of a shared codebook measures over all scales.
_OF_CODEBOOK = ("dead_codes", "perplexity", "usage")


class MultiScaleVQ(nn.Module):
    r"""Describes a map by few tokens for all of it, more for what those leave, and so on: next-scale tokens.

    .. math::
      r_1 = z,\quad q_s = \mathrm{VQ}(\mathrm{pool}_s(r_s)),\quad p_s = \phi_s(\mathrm{interpolate}(q_s)),\quad
      r_{s+1} = r_s - \mathrm{sg}(p_s),\quad q = \sum_s p_s

    where :math:`\phi(x) = (1 - \rho)\, x + \rho\, \mathrm{conv}(x)` repairs what interpolation blurs. Averages go down
    to each scale, linear interpolation goes back up to the size of the input, which may be any. The loss is the mean of
    the scales' losses, each for its own pooled residual.

    The tokens of all scales are one sequence, coarse to fine and within a scale row by row: what an autoregressive
    model of scales predicts. A mask keeps positions out of every average; windows without any other position have
    token -1, and a scale without any token adds nothing.

    Variables:
      Those of the template under ``levels_0``, with a codebook per scale also under ``levels_1`` and so on; the
      convolutions in ``params`` under ``refinements_0`` and so on.

    Attributes:
      quantizer: Template of the quantizer of a scale: a :class:`VectorQuantizer` with all its options, of one head.
        Its estimator takes the gradient across.
      scales: Size of the token map at each scale, coarse to fine: a number for all axes, or one per axis.
      spatial_dims: Number of axes of space (1, 2 or 3) before the features.
      shared_codebook: One codebook for all scales, updated once per batch with the tokens of all.
      refinement: :math:`\rho`, in [0, 1]; 0 does without convolutions.
      num_refinements: Number of convolutions, spread evenly over the scales; 0 makes one per scale.
      gradient: ``"total"``: the estimator crosses once, from the reconstruction to the input, and gradients to the
        encoder do not grow with the number of scales; convolutions have the gradient of the reconstruction, codes that
        times ``synchronization``. ``"per_scale"``: in every scale, residuals included.
      dropout: Probability with which an example (first axis) of a training batch keeps its first scales only.
      fewest_scales: Scales that dropout always keeps.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import MultiScaleVQ, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = MultiScaleVQ(VectorQuantizer(num_codes=16), scales=(1, 2, 4))
      >>> variables = vq.init(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.indices.shape
      ((2, 8, 8, 4), (2, 21))
      >>> indices = vq.apply(variables, z, method="encode")
      >>> [tokens.shape for tokens in vq.split(indices)]
      [(2, 1, 1), (2, 2, 2), (2, 4, 4)]
      >>> vectors = vq.apply(variables, indices, shape=(8, 8), method="decode")
      >>> bool((vectors == vq.apply(variables, z).quantized).all())
      True

    Source: Tian et al., 2024 (arXiv 2404.02905), Algorithms 1 and 2.
    """

    quantizer: VectorQuantizer
    scales: Sequence[int | Sequence[int]]
    spatial_dims: int = 2
    shared_codebook: bool = True
    refinement: float = 0.5
    num_refinements: int = 1
    gradient: Literal["total", "per_scale"] = "total"
    dropout: float = 0.0
    fewest_scales: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multi_scale(self)
        # A module has to be hashable, and lists come from configs.
        object.__setattr__(self, "scales", tuple(s if is_count(s) else tuple(s) for s in self.scales))

    def setup(self) -> None:
        count = 1 if self.shared_codebook else len(self.scales)
        self.levels = [self._level() for _ in range(count)]
        count = len(self.scales) if self.num_refinements == 0 else min(self.num_refinements, len(self.scales))
        self.refinements = [Refinement(self.refinement, self.spatial_dims) for _ in range(count)]

    @property
    def axis_name(self) -> str | None:
        """The template's."""
        return self.quantizer.axis_name

    @property
    def num_codes(self) -> int:
        """The number of codes of a scale."""
        return self.quantizer.num_codes

    @property
    def num_codebooks(self) -> int:
        """Of a token: one, even where every scale has its own."""
        return 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The size of the token map at each scale along each axis."""
        return tuple(sizes(scale, self.spatial_dims) for scale in self.scales)

    def __call__(self, z: Map, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes maps.

        Args:
          z: Any leading axes, ``spatial_dims`` axes of space of any size, features; any floating-point dtype.
          mask: True for valid positions. The others take no part in averages, losses or statistics, receive no
            gradient, and come back as zero vectors.
          train: Update the codebooks after the lookup, and drop scales where that is asked for.

        Returns:
          The reconstruction, int32 indices ``[..., tokens]`` (-1 where nothing valid is below, and in dropped scales),
          the mean of the scales' losses, and metrics: ``quantization_error``, ``norm_ratio`` and ``angle`` (of the
          reconstruction), ``quantization_error_0`` and so on (of the tokens of each scale), ``perplexity``, ``usage``
          and ``dead_codes`` of the shared codebook (else their mean over scales, and the sum of the dead codes), and
          the mean over scales of all others.

        Raises:
          UserError: As :class:`VectorQuantizer`.
        """
        check_input(z, mask)
        check_space(self, z)
        train = train and not self.is_initializing()
        x = zero_where_masked(z, mask).astype(jnp.float32)
        if self.is_initializing():
            for level in self.levels:
                level(x)
        depths = self._draw_depths(z) if train and self.dropout > 0 else None
        tokens, masks, outputs = [], [], []

        def quantize(number: int, pooled: Map, pooled_mask: Mask) -> tuple[Map, Int[Array, "*space"]]:
            tokens.append(pooled)
            masks.append(self._reached(number, pooled, pooled_mask, depths))
            settings = {"train": train, "update": not self.shared_codebook}
            outputs.append(self._codebook(number).assign(pooled, None, masks[-1], **settings))
            return outputs[-1].quantized, outputs[-1].indices

        total = self._descend(x, mask, quantize)
        indices = join_scales([output.indices for output in outputs], self.spatial_dims)
        metrics = combined_metrics(x, total, mask, mapped_axis(self), outputs, mean_or_total)
        if self.shared_codebook:
            joined = join_scales(tokens, self.spatial_dims, features=1), indices, join_scales(masks, self.spatial_dims)
            joint = self.levels[0].assign(*joined, train)
            metrics |= {name: joint.metrics[name] for name in _OF_CODEBOOK if name in joint.metrics}
        loss = sum(output.loss for output in outputs) / len(outputs)
        if self.gradient == "total":
            total = self._cross(x, total, mask, train)
        quantized = zero_where_masked(total.astype(z.dtype), mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Map, mask: Mask = None) -> Tokens:
        """Returns the indices of all scales.

        Args:
          z: As in the call.
          mask: As in the call.

        Returns:
          int32 indices along one last axis, coarse to fine; :meth:`split` takes them apart.
        """
        return self(z, mask).indices

    def decode(
        self, indices: Integer[Array | np.ndarray, "*batch tokens"], shape: int | Sequence[int] | None = None
    ) -> Map:
        """Returns the map of indices: with the shape of ``z``, ``decode(encode(z))`` equals ``quantized`` in float32.

        With a mask that holds at unmasked positions: indices do not say which positions were masked.

        Args:
          indices: Of any integer dtype, along the last axis as ``encode`` returns them. The tokens of the first scales
            alone give the coarser map. Index -1 is the zero vector, and a scale of -1 alone adds nothing; others out
            of range make their whole map NaN.
          shape: Size of the map; by default that of the last scale.

        Returns:
          Vectors in float32.
        """
        indices = int32_indices(indices, self.num_codes)
        shape = self.shapes[-1] if shape is None else shape
        check_shape("shape", shape, self.spatial_dims)
        space = sizes(shape, self.spatial_dims)
        parts = enumerate(self.split(indices))
        return reduce(add, [self._spread(s, self._codebook(s).decode(part), part, space) for s, part in parts])

    def split(self, indices: Integer[Array, "*batch tokens"]) -> tuple[Integer[Array, "..."], ...]:
        """Takes the sequence of tokens apart, also that of the first scales only.

        Args:
          indices: Along the last axis as ``encode`` returns them.

        Returns:
          Indices ``[..., *scale]`` of each scale that is there.
        """
        return split_scales(indices, self.shapes)

    def kmeans_init(
        self, z: Map, mask: Mask = None, *, iterations: int = 10, start: Literal["random", "plus_plus"] = "random"
    ) -> None:
        """Starts the codebooks from clusters, as :meth:`VectorQuantizer.kmeans_init`, which says how to call it.

        A shared codebook starts from the tokens of all scales, with residuals as an infinitely fine codebook would
        leave them. A codebook per scale starts from the tokens that the clusters of the coarser scales leave; the
        coarsest have few, so pass many examples.

        Args:
          z: As in the call.
          mask: True for valid positions.
          iterations: Of Lloyd's algorithm.
          start: First means: random tokens, or those of k-means++.
        """
        check_input(z, mask)
        check_space(self, z)
        tokens, masks = [], []

        def quantize(number: int, pooled: Map, pooled_mask: Mask) -> tuple[Map, None]:
            tokens.append(pooled)
            masks.append(pooled_mask)
            level = self._codebook(number)
            if self.shared_codebook:
                return level.bypass(pooled), None
            level.kmeans_init(pooled, pooled_mask, iterations=iterations, start=start)
            return level.decode(level.encode(pooled, pooled_mask)), None

        self._descend(zero_where_masked(z, mask).astype(jnp.float32), mask, quantize)
        if self.shared_codebook:
            joined = join_scales(tokens, self.spatial_dims, features=1), join_scales(masks, self.spatial_dims)
            self.levels[0].kmeans_init(*joined, iterations=iterations, start=start)

    def bypass(self, z: Map) -> Map:
        """What an infinitely fine codebook would return: pooling, interpolation and convolutions without the lookup.

        Args:
          z: As in the call.

        Returns:
          A map in the input's dtype, with the plain gradient.
        """
        check_input(z, None)
        check_space(self, z)
        quantize = lambda number, pooled, mask: (self._codebook(number).bypass(pooled), None)  # noqa: E731
        return self._descend(z.astype(jnp.float32), None, quantize).astype(z.dtype)

    def _descend(self, x: Map, mask: Mask, quantize: Callable) -> Map:
        """Goes from coarse to fine with ``quantize(number, pooled, pooled_mask) -> (codes, indices)``."""
        space, residual, parts = x.shape[-1 - self.spatial_dims : -1], x, []
        for number, shape in enumerate(self.shapes):
            codes, indices = quantize(number, *adaptive_average_pool(residual, shape, mask))
            parts.append(self._spread(number, codes, indices, space))
            residual -= jax.lax.stop_gradient(parts[-1]) if self.gradient == "total" else parts[-1]
        return reduce(add, parts)

    def _spread(
        self,
        number: int,
        codes: Float[Array, "*tokens dim"],
        indices: Int[Array, "*tokens"] | None,
        space: tuple[int, ...],
    ) -> Map:
        """What the codes of a scale add to the reconstruction."""
        last = len(self.scales) - 1
        chosen = round(number / max(last, 1) * (len(self.refinements) - 1))
        part = self.refinements[chosen](interpolate_linearly(codes, space))
        if indices is None:
            return part
        # Without tokens the bias of the convolution would be left.
        axes = tuple(range(-self.spatial_dims, 0))
        present = jnp.any(indices != -1, axis=axes, keepdims=True)[..., None]
        return jnp.where(present, part, jnp.zeros_like(part))

    def _cross(self, x: Map, total: Map, mask: Mask, train: bool) -> Map:
        estimator = get_estimator(self.quantizer.estimator)
        offered = {"mask": mask, "axis_name": mapped_axis(self)}
        if "key" in keyword_names(estimator):
            if train:
                offered["key"] = draw_key(self, f"quantizer.estimator={self.quantizer.estimator!r}")
            else:
                estimator = straight_through
        given = {name: value for name, value in offered.items() if name in keyword_names(estimator)}
        crossed = estimator(x, jax.lax.stop_gradient(total), **given)
        return with_gradient_of(crossed, crossed + total)

    def _level(self) -> VectorQuantizer:
        options = {"estimator": _code_as_constant} if self.gradient == "total" else {}
        return self.quantizer.clone(name=None, **options)

    def _codebook(self, number: int) -> VectorQuantizer:
        return self.levels[0 if self.shared_codebook else number]

    def _draw_depths(self, z: Map) -> Int[Array, " examples"]:
        examples = z.shape[0] if z.ndim > self.spatial_dims + 1 else 1
        settings = {"probability": self.dropout, "fewest": self.fewest_scales}
        return draw_depths(draw_key(self, f"dropout={self.dropout}"), examples, len(self.scales), **settings)

    def _reached(self, number: int, pooled: Map, mask: Mask, depths: Int[Array, " examples"] | None) -> Mask:
        if depths is None:
            return mask
        kept = (depths > number).reshape(-1, *[1] * (pooled.ndim - 2))
        kept = jnp.broadcast_to(kept, pooled.shape[:-1])
        return kept if mask is None else mask & kept


def _code_as_constant(z: Map, q: Map) -> Map:
    """The estimator of a scale whose gradient crosses elsewhere."""
    return jax.lax.stop_gradient(q)
