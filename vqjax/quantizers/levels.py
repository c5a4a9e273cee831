"""The common part of residual quantizers: quantize, subtract, and quantize what is left."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.metrics import geometry, masked_mean
from vqjax.quantizers.checks import check_input
from vqjax.quantizers.depth import draw_depths
from vqjax.quantizers.devices import draw_key, mapped_axis
from vqjax.quantizers.masking import int32_indices, zero_where_masked
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.projection import create_projections, has_projections, outer_features, project

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

    def unquantized(self, z: Vectors) -> Vectors:
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
    return combined | each | {"quantization_error": error} | geometry(x, total, mask, axis_name)
