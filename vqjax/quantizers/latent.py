"""Latent quantization: each feature has a short list of values of its own, which are learned."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.finite_scalar import nearest_levels, values_at
from vqjax.quantizers.checks import is_weight, requirement
from vqjax.quantizers.finite_scalar import check_codebooks, freeze_levels
from vqjax.quantizers.grid import Choice, Features, GridQuantizer, Levels, TokenMask


class LatentQuantizer(GridQuantizer):
    r"""Replaces each feature by the nearest one of a few learned values of that feature.

    .. math:: q_j = v_{j l},\quad l = \arg\min_m |z_j - v_{j m}|

    The gradient passes unchanged, and the loss is

    .. math:: \beta\, |z - \mathrm{sg}(q)|^2 + \alpha\, |\mathrm{sg}(z) - q|^2

    averaged over unmasked tokens and features, in the space of the codes (after ``project_in`` and before
    ``project_out``). Its second term alone moves the values, which all codebooks share.

    An input with ``num_codebooks * len(levels)`` features is quantized as it is, any other is projected there and
    back.

    Variables:
      ``params`` holds ``code_values``: ``sum(levels)`` numbers, the values of one feature after the other, at first
      evenly spaced from -0.5, to 0.5 where their number is odd and to one step less where it is even, so that zero is
      one of them. And projections.

    Attributes:
      levels: Number of values of each feature.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      commitment_weight: :math:`\beta`, draws the input to the values.
      quantization_weight: :math:`\alpha`, draws the values to the input.
      learn_values: False keeps the values where they start.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the batch is split. Not needed, and wrong, under
        plain ``jit``; average gradients over the axis.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import LatentQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 3))
      >>> quantizer = LatentQuantizer(levels=(5, 5, 8))
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> print(variables["params"]["code_values"][:5])
      [-0.5 -0.25 0. 0.25 0.5 ]
      >>> out = quantizer.apply(variables, z)
      >>> vectors = quantizer.apply(variables, out.indices, method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Hsu et al., 2023 (arXiv 2305.18378).
    """

    levels: Sequence[int]
    num_codebooks: int = 1
    commitment_weight: float = 0.1
    quantization_weight: float = 0.1
    learn_values: bool = True
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_levels(self)
        check_codebooks(self)
        for name in ("commitment_weight", "quantization_weight"):
            requirement(self)(is_weight(getattr(self, name)), name, "use a finite number of at least 0.")

    def radices(self) -> tuple[int, ...]:
        return self.levels

    def create(self) -> None:
        if self.learn_values:
            self.param("code_values", lambda key: jnp.asarray(_initial_values(self.levels)))

    def choose(self, x: Features, train: bool) -> Choice:
        levels = nearest_levels(x, self._values(), self.levels)
        return Choice(levels, straight_through(x, self.values(levels)))

    def values(self, levels: Levels) -> Features:
        return values_at(levels, self._values(), self.levels)

    def losses(
        self, x: Features, codes: Features, mask: TokenMask
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        constant, constant_codes = jax.lax.stop_gradient((x, codes))
        commitment = self._mean(jnp.mean(jnp.square(x - constant_codes), axis=-1), mask)
        quantization = self._mean(jnp.mean(jnp.square(constant - codes), axis=-1), mask)
        loss = self.commitment_weight * commitment + self.quantization_weight * quantization
        return loss, {"commitment_loss": commitment, "quantization_loss": quantization}

    def _values(self) -> Float[Array, " values"]:
        if not self.learn_values:
            return jnp.asarray(_initial_values(self.levels))
        if not self.has_variable("params", "code_values"):
            raise UserError(
                "The variables hold no values: create them with init(key, z), and pass all collections on to apply."
            )
        values = self.get_variable("params", "code_values")
        if values.shape != (sum(self.levels),):
            raise UserError(
                f"levels={self.levels!r} have {sum(self.levels)} values, but the variables hold {values.shape[0]}: use "
                "the settings they were made with, or initialize anew."
            )
        return values.astype(jnp.float32)


def _initial_values(levels: Sequence[int]) -> Float[np.ndarray, " values"]:
    """Evenly spaced, with zero among them."""
    return np.concatenate([np.arange(count) / (count - count % 2) - 0.5 for count in levels]).astype(np.float32)
