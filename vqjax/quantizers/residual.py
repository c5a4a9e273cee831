"""The residual vector quantizer."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.beam_search import beam_search
from vqjax.estimators import get_estimator, requirements, straight_through
from vqjax.quantizers.devices import draw_key
from vqjax.quantizers.levels import Indices, LevelInput, Mask, ResidualQuantizer, Vectors
from vqjax.quantizers.output import QuantizerOutput
from vqjax.quantizers.residual_checks import check_residual
from vqjax.quantizers.transforms import ImplicitCodebook
from vqjax.quantizers.vector import VectorQuantizer


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
        options = {}
        if self.gradient == "total":
            options = {"estimator": code_alone, "synchronization": 0.0}
        count = 1 if self.shared_codebook else self.num_quantizers
        self.levels = [self._level(number, options) for number in range(count)]

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
        self, z: Vectors, mask: Mask = None, *, iterations: int = 10, start: Literal["tokens", "plus_plus"] = "tokens"
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
        estimator, weight = get_estimator(self.quantizer.estimator), self.quantizer.synchronization
        if "key" in requirements(estimator):
            estimator = (
                partial(estimator, key=draw_key(self, f"estimator={self.quantizer.estimator!r}"))
                if train
                else straight_through
            )
        # The sum is the value of the first term bit for bit: the second is zero, and carries a gradient to the codes.
        return estimator(x, codes) + weight * (codes - jax.lax.stop_gradient(codes))

    def _level(self, number: int, options: dict) -> VectorQuantizer:
        if self.level_sizes is not None:
            options = options | {"num_codes": self.level_sizes[number]}
        if self.implicit_codebooks is not None and number > 0:
            options = options | {"codebook_transform": self.implicit_codebooks.clone(name=None)}
        return self.quantizer.clone(name=None, **options)

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


def code_alone(z: Vectors, q: Vectors) -> Vectors:
    """An estimator that sends the gradient to the code and none to the input, for where it crosses elsewhere."""
    return q
