"""The residual vector quantizer."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator, keyword_names, straight_through
from vqjax.functional.beam_search import beam_search
from vqjax.functional.metrics import geometry_statistics, masked_mean
from vqjax.quantizers.base import (
    QuantizerOutput,
    create_projections,
    draw_key,
    has_projections,
    int32_indices,
    mapped_axis,
    outer_features,
    project,
    zero_where_masked,
)
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.transforms import ImplicitCodebook, takes_condition
from vqjax.quantizers.validation import check_flags, check_input, check_template, is_count, is_number, requirement
from vqjax.quantizers.vector import VectorQuantizer


def draw_depths(
    key: Key[Array, ""],
    num_examples: int,
    num_levels: int,
    *,
    probability: float,
    fewest: int = 1,
    multiple_of: int = 1,
) -> Int[Array, " examples"]:
    """Draws how many levels each example keeps.

    With ``probability`` an example keeps a number drawn evenly from ``[fewest, num_levels]``, rounded up to a
    multiple of ``multiple_of``; otherwise all.

    Args:
      key: Random key.
      num_examples: Examples of the batch.
      num_levels: Levels there are.
      probability: Of dropping levels, in [0, 1].
      fewest: Levels always kept.
      multiple_of: Structure of the depths, such as 4 where bit rates come in steps of four levels.

    Returns:
      int32 depths in ``[fewest, num_levels]``.

    Example:
      >>> import jax
      >>> draw_depths(jax.random.key(0), 3, num_levels=8, probability=0.0).tolist()
      [8, 8, 8]

    Source: Zeghidour et al., 2021 (arXiv 2107.03312), Section III-C; the probability is that of Kumar et al., 2023
    (arXiv 2306.06546), Section 3.3.
    """
    coin_key, depth_key = jax.random.split(key)
    depths = jax.random.randint(depth_key, (num_examples,), fewest, num_levels + 1)
    depths = jnp.minimum(-(-depths // multiple_of) * multiple_of, num_levels)
    drops = jax.random.bernoulli(coin_key, float(probability), (num_examples,))
    return jnp.where(drops, depths, num_levels).astype(jnp.int32)


Vectors = Float[Array, "*batch dim"]
Indices = Int[Array, "*batch levels"]
Mask = Bool[Array, "*batch"] | None


class LevelInput(NamedTuple):
    """What a level quantizes.

    Attributes:
      residual: What the levels above have left.
      mask: True for the tokens that reach this level.
      indices: Codes chosen elsewhere; None where the level looks them up.
      above: Sum of the codes of the levels above, without gradient.
    """

    residual: Vectors
    mask: Mask
    indices: Int[Array, "*batch"] | None
    above: Vectors


class ResidualQuantizer(nn.Module):
    r"""Base of the quantizers that describe a vector by several codes, each for what the ones before have left.

    .. math:: r_1 = z,\quad q_i = Q_i(r_i),\quad r_{i+1} = r_i - \mathrm{sg}(q_i),\quad q = \sum_i q_i

    The gradient crosses once, from the sum to ``z`` (``gradient="total"``), so that it does not grow with the number
    of levels; ``gradient="per_level"`` lets it cross in every level (as SoundStream and DAC do), which multiplies
    straight-through gradients by their number.

    A subclass has the fields ``num_quantizers``, ``gradient``, ``dropout``, ``fewest_levels``, ``multiple_of`` and
    ``axis_name``, and says what is its own in the methods that follow.
    """

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks: one per level."""
        return self.num_quantizers

    def features(self, outer: int) -> int:
        """The dimension of the codes; where it is not that of the input, two linear maps lead there and back."""
        return outer

    def enter(self, x: Vectors) -> Vectors:
        """What happens to a vector before the first level."""
        return x

    def level(self, number: int, given: LevelInput, train: bool) -> QuantizerOutput:
        """Quantizes what is left; the output's ``quantized`` has the gradient of the form ``gradient`` names."""
        raise NotImplementedError

    def level_encode(self, number: int, residual: Vectors, above: Vectors) -> Int[Array, "*batch"]:
        """The indices of one level, without training."""
        raise NotImplementedError

    def level_decode(
        self, number: int, indices: Int[Array, "*batch"], above: Float[Array, "*batch features"]
    ) -> Vectors:
        """The codes of one level; zero for index -1. Nothing is above the first level: its ``above`` is ignored."""
        raise NotImplementedError

    def choose(self, x: Vectors, depths: Int[Array, "*batch"] | None, train: bool) -> Indices | None:
        """Indices of all levels, where they are not chosen level by level."""
        return None

    def learn_jointly(self, inputs: list[LevelInput], indices: Indices) -> dict[str, Float[Array, ""]]:
        """Updates what all levels share, after all of them; returns metrics that take the place of the levels'."""
        return {}

    def combine(self, name: str, values: list[Float[Array, ""]]) -> Float[Array, ""]:
        """What is reported for a metric of the levels: their mean, and the number of all dead codes."""
        return mean_or_total(name, values)

    def cross(self, x: Vectors, codes: Vectors, train: bool) -> Vectors:
        """Returns the sum of codes with its gradient to the input, for ``gradient="total"``."""
        return straight_through(x, codes)

    @nn.compact
    def __call__(self, z: Vectors, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype. With dropout, the first axis is
            that of the examples.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no
            gradient, and come back as zero vectors with index -1.
          train: Update codebooks after the lookup, and drop levels where that is asked for.

        Returns:
          The sum of the codes, int32 indices ``[..., num_quantizers]`` (-1 in dropped levels), the sum of the levels'
          losses, and metrics: ``quantization_error`` (of the sum), ``quantization_error_0`` and so on (of what each
          level was given), ``norm_ratio`` and ``angle`` (of the sum), the levels' numbers of dead codes added up, and
          the mean over levels of all others.

        Raises:
          UserError: See the levels' class.
        """
        check_input(z, mask)
        train = train and not self.is_initializing()
        if self.is_initializing() and self.features(z.shape[-1]) != z.shape[-1]:
            create_projections(self, z.shape[-1], self.features(z.shape[-1]))
        x = self._inner(zero_where_masked(z, mask))
        depths = self._draw_depths(x) if train and self.dropout > 0 else None
        chosen = self.choose(x, depths, train)
        above, quantized, outputs, inputs = jnp.zeros_like(x), jnp.zeros_like(x), [], []
        for number in range(self.num_quantizers):
            indices = None if chosen is None else chosen[..., number]
            inputs.append(LevelInput(x - above, _reaches(number, mask, depths), indices, above))
            outputs.append(self.level(number, inputs[-1], train))
            quantized += outputs[-1].quantized
            above += jax.lax.stop_gradient(outputs[-1].quantized)
        indices = jnp.stack([output.indices for output in outputs], axis=-1)
        metrics = self._metrics(x, above, mask, outputs)
        if train:
            metrics |= self.learn_jointly(inputs, indices)
        if self.gradient == "total":
            quantized = self.cross(x, quantized, train)
        quantized = zero_where_masked(self._outer(quantized).astype(z.dtype), mask)
        loss = sum(output.loss for output in outputs)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None) -> Indices:
        """Returns the indices of all levels.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices along a new last axis of levels, coarsest first.
        """
        check_input(z, mask)
        x = self._inner(zero_where_masked(z, mask))
        indices = self.choose(x, None, train=False)
        if indices is None:
            above, found = jnp.zeros_like(x), []
            for number in range(self.num_quantizers):
                found.append(self.level_encode(number, x - above, above))
                above += self.level_decode(number, found[-1], above)
            indices = jnp.stack(found, axis=-1)
        return indices if mask is None else jnp.where(mask[..., None], indices, -1)

    def decode(self, indices: Integer[Array | np.ndarray, "*batch levels"]) -> Vectors:
        """Returns the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, levels along the last axis. Fewer levels than there are give the coarser
            vector. A level of index -1 adds nothing; a token without any level is zero; other indices out of range
            give NaN.

        Returns:
          Vectors in float32.
        """
        indices = int32_indices(indices, self.num_codes)
        if indices.ndim < 1 or not 1 <= indices.shape[-1] <= self.num_quantizers:
            raise UserError(
                f"indices has shape {indices.shape}: its last axis has to be the levels, 1 to {self.num_quantizers}."
            )
        total = None
        for number in range(indices.shape[-1]):
            above = jnp.zeros((*indices.shape[:-1], 1)) if total is None else total
            codes = self.level_decode(number, indices[..., number], above)
            total = codes if total is None else total + codes
        return zero_where_masked(self._outer(total), jnp.any(indices != -1, axis=-1))

    def bypass(self, z: Vectors) -> Vectors:
        """What infinitely many levels would return: everything but the quantization.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors in the input's dtype, with the plain gradient.
        """
        check_input(z, None)
        return self._outer(self._inner(z)).astype(z.dtype)

    def _inner(self, z: Vectors) -> Float[Array, "*batch features"]:
        if has_projections(self) and z.shape[-1] != outer_features(self):
            raise UserError(
                f"z has {z.shape[-1]} features, but the projections in the variables were made for "
                f"{outer_features(self)}: pass z of {outer_features(self)} features, or initialize anew."
            )
        z = z.astype(jnp.float32)
        return self.enter(project(self, "project_in", z) if has_projections(self) else z)

    def _outer(self, vectors: Vectors) -> Float[Array, "*batch features"]:
        return project(self, "project_out", vectors) if has_projections(self) else vectors

    def _draw_depths(self, x: Vectors) -> Int[Array, "*batch"]:
        leading = x.shape[:-1]
        settings = {"probability": self.dropout, "fewest": self.fewest_levels, "multiple_of": self.multiple_of}
        depths = draw_depths(
            draw_key(self, f"dropout={self.dropout}"), leading[0] if leading else 1, self.num_quantizers, **settings
        )
        return jnp.broadcast_to(depths.reshape(-1, *[1] * (len(leading) - 1)), leading) if leading else depths[0]

    def _metrics(
        self, x: Vectors, codes: Vectors, mask: Mask, outputs: list[QuantizerOutput]
    ) -> dict[str, Float[Array, ""]]:
        return combined_metrics(x, codes, mask, mapped_axis(self), outputs, self.combine)


def _reaches(number: int, mask: Mask, depths: Int[Array, "*batch"] | None) -> Mask:
    if depths is None:
        return mask
    return depths > number if mask is None else mask & (depths > number)


def mean_or_total(name: str, values: list[Float[Array, ""]]) -> Float[Array, ""]:
    """The mean of a metric over levels; the number of all dead codes."""
    return sum(values) if name == "dead_codes" else sum(values) / len(values)


def combined_metrics(
    x: Vectors,
    total: Vectors,
    mask: Mask,
    axis_name: str | None,
    outputs: list[QuantizerOutput],
    combine: Callable[[str, list[Float[Array, ""]]], Float[Array, ""]],
) -> dict[str, Float[Array, ""]]:
    """The metrics of several quantizers, one after the other, that describe the same vectors.

    Args:
      x: The vectors.
      total: What all quantizers together make of them.
      mask: True for the vectors that count.
      axis_name: Mapped axis over which the batch is split.
      outputs: Of each quantizer.
      combine: From a metric's name and values to what is reported.

    Returns:
      Errors and geometry of the total, the error of each quantizer, and all other metrics combined.
    """
    error = masked_mean(jnp.mean(jnp.square(x - total), axis=-1), mask, axis_name)
    combined = {
        name: combine(name, [output.metrics[name] for output in outputs if name in output.metrics])
        for name in outputs[0].metrics
    }
    each = {f"quantization_error_{i}": output.metrics["quantization_error"] for i, output in enumerate(outputs)}
    return combined | each | {"quantization_error": error} | geometry_statistics(x, total, mask, axis_name)


def check_levels(module: nn.Module) -> None:
    """Refuses settings of the levels that every residual quantizer has.

    Args:
      module: A ``ResidualQuantizer``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """
    require = requirement(module)
    require(is_count(module.num_quantizers), "num_quantizers", "use a whole number of at least 1.")
    require(module.gradient in ("total", "per_level"), "gradient", "use 'total' or 'per_level'.")
    require(is_number(module.dropout) and 0 <= module.dropout <= 1, "dropout", "use a probability in [0, 1].")
    for name in ("fewest_levels", "multiple_of"):
        value = getattr(module, name)
        require(
            is_count(value) and value <= module.num_quantizers,
            name,
            f"use a whole number in [1, {module.num_quantizers}], the number of quantizers.",
        )


def check_residual(rvq: nn.Module) -> None:
    """Refuses arguments of a ``ResidualVQ`` that are out of range or have no effect with the others.

    Args:
      rvq: The module.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """
    require = requirement(rvq)
    check_template(rvq)
    check_flags(rvq)
    check_levels(rvq)
    implicit = rvq.implicit_codebooks
    require(implicit is None or takes_condition(implicit), "implicit_codebooks", "use ImplicitCodebook(...), or None.")
    _check_sizes(rvq, require)
    for name in ("beam_size", "beam_size_eval"):
        require(getattr(rvq, name) is None or is_count(getattr(rvq, name)), name, "use a whole number of at least 1.")
    template = rvq.quantizer
    if template.heads > 1:
        raise UserError(
            f"quantizer.heads={template.heads} is not allowed in a residual quantizer: use GroupedResidualVQ, which "
            "splits the features first."
        )
    if rvq.gradient == "total":
        _check_total(rvq)
    if rvq.implicit_codebooks is not None:
        require(
            isinstance(template.codebook, GradientCodebook) and template.codebook.transform is None,
            "implicit_codebooks",
            "the quantizer needs codebook='gradient' and no transform of its own.",
        )
        require(
            not rvq.shared_codebook, "shared_codebook", "implicit codebooks belong to a level. Choose one of the two."
        )
    searches = max(rvq.beam_size, rvq.beam_size_eval or 1) > 1
    if searches and template.sampling_temperature is not None:
        raise UserError(
            f"quantizer.sampling_temperature={template.sampling_temperature} is not allowed with a beam search, which "
            "chooses the codes. Choose one of the two."
        )
    if searches and chooses_codes(get_estimator(template.estimator)):
        raise UserError(
            f"quantizer.estimator={template.estimator!r} chooses the codes itself, and so does a beam search. Choose "
            "one of the two."
        )


def _check_sizes(rvq: nn.Module, require: Callable) -> None:
    sizes = rvq.level_sizes
    if sizes is not None:
        require(
            isinstance(sizes, Sequence) and len(sizes) == rvq.num_quantizers and all(is_count(size) for size in sizes),
            "level_sizes",
            f"use {rvq.num_quantizers} whole numbers of at least 1, one per level.",
        )
        require(not rvq.shared_codebook, "level_sizes", "a shared codebook has the size of the template. Leave it out.")
    require(rvq.code_dim is None or is_count(rvq.code_dim), "code_dim", "use a whole number of at least 1, or None.")


def _check_total(rvq: nn.Module) -> None:
    template = rvq.quantizer
    estimator = get_estimator(template.estimator)
    one_codebook = chooses_codes(estimator) or "indices" in keyword_names(estimator)
    if one_codebook:
        raise UserError(
            f"quantizer.estimator={template.estimator!r} needs the codebook of a level, and gradient='total' crosses "
            "all levels at once: use gradient='per_level', or another estimator."
        )
    if template.codebook_dim is not None:
        raise UserError(
            f"quantizer.codebook_dim={template.codebook_dim} projects within each level, and those projections learn "
            "only where the gradient crosses in each level: use gradient='per_level', or ResidualVQ(code_dim=...)."
        )


class ResidualVQ(ResidualQuantizer):
    r"""Describes a vector by several codes: the first for the vector, each further one for what is left.

    .. math:: r_1 = z,\quad q_i = \mathrm{VQ}_i(r_i),\quad r_{i+1} = r_i - \mathrm{sg}(q_i),\quad q = \sum_i q_i

    :math:`Q` levels of :math:`K` codes cost :math:`Q \log_2 K` bits and offer :math:`K^Q` vectors. The loss is the
    sum of the levels' losses, each for its own residual.

    Variables:
      Those of the template, once per level, under ``levels_0``, ``levels_1`` and so on.

    Attributes:
      quantizer: Template of a level: a :class:`VectorQuantizer` with all its options, of one head. Its estimator
        takes the gradient across.
      num_quantizers: Number of levels.
      level_sizes: Number of codes of each level, where that is not the template's.
      gradient: ``"total"``: the estimator crosses once, from the sum of the codes to the input, and the gradient does
        not grow with the number of levels. ``"per_level"``: in every level (SoundStream, DAC).
      code_dim: Project to this many features before the first level, and back after the last. (The template's own
        ``code_dim`` projects within each level, as DAC does.)
      shared_codebook: All levels use one codebook, updated once per batch with the tokens of all levels.
      implicit_codebooks: Template of a network that adapts each codebook but the first to what the levels before
        have decoded (QINCo); the quantizer's codes have to be learned by gradient.
      beam_size: Candidates that a search over the levels keeps, in training; 1 takes the nearest code in each.
      beam_size_eval: The same where ``train=False``; ``beam_size`` by default.
      dropout: Probability with which an example of a training batch keeps its first levels only.
      fewest_levels: Levels that dropout always keeps.
      multiple_of: Depths under dropout are multiples of this.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import ResidualVQ, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 4))
      >>> rvq = ResidualVQ(VectorQuantizer(num_codes=16), num_quantizers=3)
      >>> variables = rvq.init(jax.random.key(1), z)
      >>> out, updates = rvq.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.indices.shape
      ((2, 16, 4), (2, 16, 3))
      >>> indices = rvq.apply(variables, z, method="encode")
      >>> coarse = rvq.apply(variables, indices[..., :2], method="decode")
      >>> vectors = rvq.apply(variables, indices, method="decode")
      >>> bool((vectors == rvq.apply(variables, z).quantized).all())
      True

    Source: Zeghidour et al., 2021 (arXiv 2107.03312), Algorithm 1; Huijben et al., 2024 (arXiv 2401.14732).
    """

    quantizer: VectorQuantizer
    num_quantizers: int
    level_sizes: Sequence[int] | None = None
    gradient: Literal["total", "per_level"] = "total"
    code_dim: int | None = None
    shared_codebook: bool = False
    implicit_codebooks: ImplicitCodebook | None = None
    beam_size: int = 1
    beam_size_eval: int | None = None
    dropout: float = 0.0
    fewest_levels: int = 1
    multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_residual(self)
        if self.level_sizes is not None:
            # A module has to be hashable, and lists come from configs.
            object.__setattr__(self, "level_sizes", tuple(self.level_sizes))

    def setup(self) -> None:
        count = 1 if self.shared_codebook else self.num_quantizers
        self.levels = [self._level(number) for number in range(count)]

    @property
    def axis_name(self) -> str | None:
        """The template's."""
        return self.quantizer.axis_name

    @property
    def num_codes(self) -> int:
        """The number of codes of a level, of the largest one where they differ."""
        return self.quantizer.num_codes if self.level_sizes is None else max(self.level_sizes)

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks: one per level, or one for all."""
        return 1 if self.shared_codebook else self.num_quantizers

    def kmeans_init(
        self, z: Vectors, mask: Mask = None, *, iterations: int = 10, start: Literal["random", "plus_plus"] = "random"
    ) -> None:
        """Starts every codebook from clusters of what the levels before it leave.

        Args:
          z: As in :meth:`VectorQuantizer.kmeans_init`, which says how to call it; a shared codebook is started from
            the tokens of the first level.
          mask: True for valid tokens.
          iterations: Of Lloyd's algorithm.
          start: First means: random tokens, or those of k-means++.
        """
        x = self._inner(z)
        for number, level in enumerate(self.levels):
            level.kmeans_init(x, mask, iterations=iterations, start=start)
            x = x - self.level_decode(number, self.level_encode(number, x, x), x)

    def features(self, outer: int) -> int:
        return outer if self.code_dim is None else self.code_dim

    def level(self, number: int, given: LevelInput, train: bool) -> QuantizerOutput:
        level, condition = self._codebook(number), self._condition(number, given.above)
        if self.is_initializing():
            return level(given.residual, given.mask, condition=condition)
        options = {"condition": condition, "update": not self.shared_codebook}
        return level.assign(given.residual, given.indices, given.mask, train, **options)

    def level_encode(self, number: int, residual: Vectors, above: Vectors) -> Int[Array, "*batch"]:
        return self._codebook(number).encode(residual, condition=self._condition(number, above))

    def level_decode(
        self, number: int, indices: Int[Array, "*batch"], above: Float[Array, "*batch features"]
    ) -> Vectors:
        return self._codebook(number).decode(indices, condition=self._condition(number, above))

    def choose(self, x: Vectors, depths: Int[Array, "*batch"] | None, train: bool) -> Indices | None:
        size = self.beam_size if train or self.beam_size_eval is None else self.beam_size_eval
        if size == 1 or self.is_initializing():
            return None
        return beam_search(x, self.num_quantizers, size, self._candidates, self._codes, depths)

    def learn_jointly(self, inputs: list[LevelInput], indices: Indices) -> dict[str, Float[Array, ""]]:
        if not self.shared_codebook:
            return {}
        residuals = jnp.stack([given.residual for given in inputs])
        mask = None if inputs[0].mask is None else jnp.stack([given.mask for given in inputs])
        out = self.levels[0].assign(residuals, jnp.moveaxis(indices, -1, 0), mask, train=True)
        return {name: out.metrics[name] for name in ("dead_codes", "perplexity", "usage") if name in out.metrics}

    def combine(self, name: str, values: list[Float[Array, ""]]) -> Float[Array, ""]:
        shared = self.shared_codebook and name == "dead_codes"
        return values[0] if shared else super().combine(name, values)

    def cross(self, x: Vectors, codes: Vectors, train: bool) -> Vectors:
        estimator, weight = get_estimator(self.quantizer.estimator), self.quantizer.sync_nu
        if "key" in keyword_names(estimator):
            estimator = (
                partial(estimator, key=draw_key(self, f"estimator={self.quantizer.estimator!r}"))
                if train
                else straight_through
            )
        # The sum is the value of the first term bit for bit: the second is zero, and carries a gradient to the codes.
        return estimator(x, codes) + weight * (codes - jax.lax.stop_gradient(codes))

    def _level(self, number: int) -> VectorQuantizer:
        options = {}
        if self.level_sizes is not None:
            options["num_codes"] = self.level_sizes[number]
        if self.implicit_codebooks is not None and number > 0:
            options["codebook"] = dataclasses.replace(self.quantizer.codebook, transform=self.implicit_codebooks)
        level = self.quantizer.clone(name=None, **options)
        return level.without_estimator() if self.gradient == "total" else level

    def _codebook(self, number: int) -> VectorQuantizer:
        return self.levels[0 if self.shared_codebook else number]

    def _condition(self, number: int, above: Float[Array, "*batch features"]) -> Vectors | None:
        return above if self.implicit_codebooks is not None and number > 0 else None

    def _candidates(
        self, number: int, residuals: Vectors, sums: Vectors, count: int
    ) -> Int[Array, "*batch candidates"]:
        level = self._codebook(number)
        return level.encode(residuals, condition=self._condition(number, sums), top_k=min(count, level.num_codes))

    def _codes(
        self, number: int, indices: Int[Array, "*batch beams count"], sums: Float[Array, "*batch beams dim"]
    ) -> Float[Array, "*batch beams count dim"]:
        each = jnp.broadcast_to(sums[..., None, :], (*indices.shape, sums.shape[-1]))
        return self.level_decode(number, indices, each)


class ResidualSimVQ(ResidualVQ):
    """:class:`ResidualVQ` over :class:`SimVQ`: fixed codes in a learned basis, one per level.

    Example:
      >>> from vqjax import ResidualSimVQ, SimVQ
      >>> rvq = ResidualSimVQ(SimVQ(num_codes=256), num_quantizers=4)

    Source: Zhu et al., 2024 (arXiv 2411.02038).
    """
