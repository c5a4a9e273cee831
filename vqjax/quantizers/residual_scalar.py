"""Residual finite scalar quantization: each level rounds what is left on a finer grid."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.functional.metrics import index_statistics, masked_mean
from vqjax.functional.mixed_radix import to_index, to_levels
from vqjax.functional.scalar import bounded, level_values, rounded_levels, soft_clamp, values_at
from vqjax.quantizers.base import QuantizerOutput, decode_valid, mapped_axis, minus_one_where_masked, zero_where_masked
from vqjax.quantizers.binary import LFQ
from vqjax.quantizers.residual import LevelInput, ResidualQuantizer, Vectors, check_levels
from vqjax.quantizers.scalar import freeze_levels
from vqjax.quantizers.validation import check_flags, is_number


class ResidualFSQ(ResidualQuantizer):
    r"""Finite scalar quantization in several steps, each on a grid :math:`L` times finer than the one before.

    .. math:: q_i = s_i\, Q(r_i / s_i),\quad s_i = L^{-i},\quad r_{i+1} = r_i - \mathrm{sg}(q_i),\quad q = \sum_i q_i

    for :math:`i = 0, 1, \dots` and each feature by itself, where :math:`Q` rounds to :math:`L` values evenly spaced
    from -1 to 1. Step :math:`i` leaves at most :math:`s_i/(L-1)` of each feature. There is nothing to learn and no
    loss. An input whose number of features is not ``len(levels)`` is projected there and back.

    Variables:
      Projections, in ``params``.

    Attributes:
      levels: :math:`L`, the number of values of each feature in every step.
      num_quantizers: Number of steps.
      gradient: ``"total"``: straight through once, from the sum of the codes to the (clamped) input.
        ``"per_level"``: in every step, which multiplies the gradient by their number.
      dropout: Probability with which an example of a training batch keeps its first steps only.
      fewest_levels: Steps that dropout always keeps.
      multiple_of: Depths under dropout are multiples of this.
      hard_clamp: :math:`Q` clips to [-1, 1], and the input is kept within
        :math:`\pm c = \pm (1 + 1/(L-1))` by :math:`c \tanh(z/c)` first. Otherwise :math:`Q` contains a hyperbolic
        tangent, with which the sum of codes does not converge to the input.
      soft_clamp: :math:`c` for ``hard_clamp=False``; None leaves the input as it is.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the metrics are those of the global batch.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import ResidualFSQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 4))
      >>> quantizer = ResidualFSQ(levels=(5, 5, 5, 5), num_quantizers=3)
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> out = quantizer.apply(variables, z)
      >>> out.quantized.shape, out.indices.shape
      ((2, 16, 4), (2, 16, 3))
      >>> vectors = quantizer.apply(variables, out.indices, method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Mentzer et al., 2023 (arXiv 2309.15505), within Zeghidour et al., 2021 (arXiv 2107.03312), Algorithm 1.
    """

    levels: Sequence[int]
    num_quantizers: int
    gradient: Literal["total", "per_level"] = "total"
    dropout: float = 0.0
    fewest_levels: int = 1
    multiple_of: int = 1
    hard_clamp: bool = True
    soft_clamp: float | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_levels(self)
        check_flags(self)
        check_levels(self)
        _check_soft_clamp(self)

    @property
    def num_codes(self) -> int:
        """The number of codes of one step."""
        return int(np.prod(self.levels))

    def features(self, outer: int) -> int:
        return len(self.levels)

    def enter(self, x: Vectors) -> Vectors:
        if x.shape[-1] != len(self.levels):
            raise UserError(
                f"z has {x.shape[-1]} features, but the codes have {len(self.levels)}: pass z of so many, or "
                "initialize anew and pass all collections on to apply."
            )
        if self.hard_clamp:
            return soft_clamp(x, [1 + 1 / (count - 1) for count in self.levels])
        return x if self.soft_clamp is None else soft_clamp(x, [self.soft_clamp] * len(self.levels))

    def level(self, number: int, given: LevelInput, train: bool) -> QuantizerOutput:
        scale = self._scale(number, given.residual.shape)
        x = self._bounded(given.residual, scale)
        levels = rounded_levels(x, self.levels, "symmetric")
        codes, indices = self._values(number, levels), to_index(levels, self.levels)
        axis_name = mapped_axis(self)
        error = masked_mean(jnp.mean(jnp.square(given.residual - codes), axis=-1), given.mask, axis_name)
        metrics = {"quantization_error": error}
        metrics |= index_statistics(indices, self.num_codes, given.mask, axis_name)
        quantized = zero_where_masked(straight_through(scale * x, codes), given.mask)
        return QuantizerOutput(quantized, minus_one_where_masked(indices, given.mask), jnp.zeros(()), metrics)

    def level_encode(self, number: int, residual: Vectors, above: Vectors) -> Int[Array, "*batch"]:
        x = self._bounded(residual, self._scale(number, residual.shape))
        return to_index(rounded_levels(x, self.levels, "symmetric"), self.levels)

    def level_decode(
        self, number: int, indices: Int[Array, "*batch"], above: Float[Array, "*batch above"]
    ) -> Float[Array, "*batch features"]:
        decode = lambda valid: self._values(number, to_levels(valid, self.levels))  # noqa: E731
        return decode_valid(decode, indices, self.num_codes)

    def _scale(self, number: int, shape: tuple[int, ...]) -> Vectors:
        return jnp.broadcast_to(jnp.asarray(self._scales(number), jnp.float32), shape)

    def _scales(self, number: int) -> Float[np.ndarray, " features"]:
        return np.asarray(self.levels, np.float64) ** -number

    def _bounded(self, residual: Vectors, scale: Vectors) -> Vectors:
        return bounded(residual / scale, self.levels, "symmetric", self.hard_clamp)

    def _values(self, number: int, levels: Int[Array, "*batch features"]) -> Vectors:
        scales = np.repeat(self._scales(number), self.levels)
        values = (level_values(self.levels, "symmetric") * scales).astype(np.float32)
        return values_at(levels, values, self.levels)


def _check_soft_clamp(quantizer: ResidualFSQ) -> None:
    limit = quantizer.soft_clamp
    if limit is None:
        return
    if not is_number(limit) or not 0 < limit < np.inf:
        raise UserError(f"soft_clamp={limit!r} is not allowed: use a finite number above 0, or None.")
    if quantizer.hard_clamp:
        raise UserError(
            f"soft_clamp={limit!r} is not allowed with hard_clamp=True, which has a limit of its own. Leave it out, or "
            "use hard_clamp=False."
        )


class ResidualLFQ(ResidualQuantizer):
    r"""Describes a vector by the signs of its features, then by those of what is left, at half the scale, and so on.

    .. math:: r_1 = x,\quad q_i = 2^{1-i}\,\mathrm{sign}(r_i),\quad r_{i+1} = r_i - \mathrm{sg}(q_i),\quad
      q = \sum_i q_i

    Levels :math:`1 \dots Q` divide ``[-2, 2]`` evenly into :math:`2^Q` values per feature. The loss is the sum of the
    levels' losses, each for its own residual. An input of another number of features than ``bits`` is projected there
    and back by two linear maps.

    Attributes:
      bits: Features of a code, 1 to 30; a level has ``2**bits`` codes.
      num_quantizers: Number of levels :math:`Q`.
      gradient: ``"total"``: the gradient crosses once, straight through, from the sum of the codes to the input.
        ``"per_level"``: in every level (vector-quantize-pytorch), which multiplies it by their number.
      entropy_weight: As all that follow up to ``smallest_probability``, see :class:`LFQ`.
      diversity: See :class:`LFQ`.
      inverse_temperature: See :class:`LFQ`.
      commitment_weight: See :class:`LFQ`.
      bits_per_group: See :class:`LFQ`.
      soft_clamp: That of the first level, at least 1; each further level has half of it, as it has half the scale.
      smallest_probability: See :class:`LFQ`.
      dropout: Probability with which an example of a training batch keeps its first levels only.
      fewest_levels: Levels that dropout always keeps.
      multiple_of: Depths under dropout are multiples of this.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Not needed, and wrong,
        under plain ``jit``. Average gradients over the axis.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import ResidualLFQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 8))
      >>> rlfq = ResidualLFQ(bits=8, num_quantizers=3)
      >>> variables = rlfq.init(jax.random.key(1), z)
      >>> out = rlfq.apply(variables, z, train=True)
      >>> out.quantized.shape, out.indices.shape
      ((2, 16, 8), (2, 16, 3))
      >>> vectors = rlfq.apply(variables, rlfq.apply(variables, z, method="encode"), method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Yu et al., 2023 (arXiv 2310.05737); Zeghidour et al., 2021 (arXiv 2107.03312), Algorithm 1.
    """

    bits: int
    num_quantizers: int
    gradient: Literal["total", "per_level"] = "total"
    entropy_weight: float = 0.1
    diversity: float = 1.0
    inverse_temperature: float = 100.0
    commitment_weight: float = 0.0
    bits_per_group: int | None = None
    soft_clamp: float | None = None
    smallest_probability: float = 0.0
    dropout: float = 0.0
    fewest_levels: int = 1
    multiple_of: int = 1
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)
        # The first level refuses what is wrong with its arguments.
        self._level(0, parent=None)

    def setup(self) -> None:
        self.levels = [self._level(number) for number in range(self.num_quantizers)]

    @property
    def num_codes(self) -> int:
        """The number of codes of one level."""
        return 2 ** int(self.bits)

    def features(self, outer: int) -> int:
        return self.bits

    def level(self, number: int, given: LevelInput, train: bool) -> QuantizerOutput:
        output = self.levels[number](given.residual, given.mask, train)
        if self.gradient == "total":
            return output.replace(quantized=jax.lax.stop_gradient(output.quantized))
        return output

    def level_encode(self, number: int, residual: Vectors, above: Vectors) -> Int[Array, "*batch"]:
        return self.levels[number].encode(residual)

    def level_decode(self, number: int, indices: Int[Array, "*batch"], above: Vectors) -> Float[Array, "*batch bits"]:
        return self.levels[number].decode(indices)

    def _level(self, number: int, **placement: Any) -> LFQ:
        shrinking = 2.0**-number
        return LFQ(
            bits=self.bits,
            scale=shrinking,
            entropy_weight=self.entropy_weight,
            diversity=self.diversity,
            inverse_temperature=self.inverse_temperature,
            commitment_weight=self.commitment_weight,
            bits_per_group=self.bits_per_group,
            soft_clamp=self.soft_clamp * shrinking if is_number(self.soft_clamp) else self.soft_clamp,
            smallest_probability=self.smallest_probability,
            axis_name=self.axis_name,
            **placement,
        )
