"""Finite scalar perturbation: bins of equal probability, and noise within them in training."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.estimators import straight_through
from vqjax.finite_scalar import values_at
from vqjax.perturbation import DISTRIBUTIONS, MOMENTS, bin_centers, bins, moments_loss, perturbed, unit_variance
from vqjax.quantizers.checks import check_input, is_number, requirement
from vqjax.quantizers.devices import draw_key, mapped_axis
from vqjax.quantizers.finite_scalar import check_codebooks, freeze_levels
from vqjax.quantizers.grid import Choice, Features, GridQuantizer, Levels, TokenMask, Vectors

_EPSILON = float(np.finfo(np.float32).eps)


class FSP(GridQuantizer):
    r"""Finite scalar perturbation: each feature goes through a distribution function and into one of equal bins.

    .. math:: p = F(z),\quad l = \lfloor p L \rfloor,\quad \hat p = \frac{l + 1/2}{L},\quad
      q = \sqrt{12}\,(\hat p - \tfrac12)\ \ \text{or}\ \ F^{-1}(\hat p)

    In training most values are not the code: :math:`\hat p` is then :math:`p` plus uniform noise of up to half a bin,
    so that the decoder sees the range of values that a code stands for. The gradient crosses bins and noise unchanged.
    The loss asks for features whose moments are those of :math:`F`, since only then all bins are used alike.

    An input with ``num_codebooks * len(levels)`` features is quantized as it is, any other is projected there and
    back.

    Variables:
      Projections, in ``params``.

    Attributes:
      levels: :math:`L`, the number of bins of each feature.
      activation: :math:`F`, a name from :data:`vqjax.perturbation.DISTRIBUTIONS`.
      quantize_rate: Probability with which a value is the code in training too.
      invert: Return :math:`F^{-1}(\hat p)`, in the space of the input and with its gradient passed on unchanged,
        instead of numbers of unit variance.
      moments: What the loss asks for, a name from :data:`vqjax.perturbation.MOMENTS`; its statistics are those of
        the unmasked tokens of the global batch.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the batch is split. Not needed, and wrong, under
        plain ``jit``.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import FSP
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 3))
      >>> fsp = FSP(levels=(8, 8, 8))
      >>> out = fsp.apply({}, z, train=True, rngs={"quantizer": jax.random.key(1)})
      >>> exact = fsp.apply({}, z)
      >>> bool((out.indices == exact.indices).all()), bool((out.quantized == exact.quantized).any())
      (True, False)

    Source: Finite scalar perturbation, 2026 (arXiv 2602.17133).
    """

    levels: Sequence[int]
    activation: str = "tanh"
    quantize_rate: float = 0.0
    invert: bool = False
    moments: str = "tanh"
    num_codebooks: int = 1
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_levels(self)
        check_codebooks(self)
        for name, known in (("activation", DISTRIBUTIONS), ("moments", MOMENTS)):
            value = getattr(self, name)
            named = isinstance(value, str) and value in known
            requirement(self)(named, name, f"use one of {', '.join(map(repr, known))}.")
        in_range = is_number(self.quantize_rate) and 0 <= self.quantize_rate <= 1
        requirement(self)(in_range, "quantize_rate", "use a probability in [0, 1].")

    def radices(self) -> tuple[int, ...]:
        return self.levels

    def choose(self, x: Features, train: bool) -> Choice:
        p = DISTRIBUTIONS[self.activation].cdf(x)
        levels = bins(p, self.levels)
        values = self.values(levels)
        if train and self.quantize_rate < 1:
            values = self._with_noise(p, values)
        return Choice(levels, straight_through(self._in_space_of_codes(x), values))

    def values(self, levels: Levels) -> Features:
        # Evaluated once and not within the program, whose compiler may round differently each time.
        with jax.ensure_compile_time_eval():
            values = np.asarray(self._code_of(bin_centers(self.levels)))
        return values_at(levels, values, self.levels)

    def losses(
        self, x: Features, codes: Features, mask: TokenMask
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        error = self._mean(jnp.mean(jnp.square(self._in_space_of_codes(x) - codes), axis=-1), mask)
        moments = MOMENTS[self.moments]
        if moments is None:
            return jnp.zeros(()), {"quantization_error": error}
        features = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
        of_tokens: Bool[Array, "*tokens"] | None = None if mask is None else mask[..., 0]
        loss = moments_loss(features, moments, of_tokens, mapped_axis(self))
        return loss, {"quantization_error": error, "moments_loss": loss}

    def unquantized(self, z: Vectors) -> Vectors:
        check_input(z, None)
        self._check_features(z)
        return self._vectors_of(self._in_space_of_codes(self._features_of(z))).astype(z.dtype)

    def _in_space_of_codes(self, x: Features) -> Features:
        # The loss is for the features before the distribution function, so this cannot be done where they enter.
        return x if self.invert else unit_variance(DISTRIBUTIONS[self.activation].cdf(x))

    def _code_of(self, p: Float[Array | np.ndarray, "*shape"]) -> Float[Array | np.ndarray, "*shape"]:
        if not self.invert:
            return unit_variance(p)
        return DISTRIBUTIONS[self.activation].inverse(jnp.clip(jnp.asarray(p), _EPSILON, 1 - _EPSILON))

    def _with_noise(self, p: Features, values: Features) -> Features:
        where_key, noise_key = jax.random.split(draw_key(self, f"quantize_rate={self.quantize_rate}, below 1,"))
        noisy = self._code_of(perturbed(noise_key, p, self.levels))
        return jnp.where(jax.random.bernoulli(where_key, float(self.quantize_rate), p.shape), values, noisy)
