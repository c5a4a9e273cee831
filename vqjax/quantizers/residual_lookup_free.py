"""The residual form of lookup-free quantization."""

from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from vqjax.quantizers.checks import is_number
from vqjax.quantizers.levels import LevelInput, ResidualQuantizer, Vectors
from vqjax.quantizers.lookup_free import LFQ
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.residual_checks import check_levels


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
