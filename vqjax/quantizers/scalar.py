"""Finite scalar quantization: no codebook to learn, each feature is bounded and rounded."""

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.functional.scalar import (
    BOUNDS,
    DISTRIBUTIONS,
    MOMENTS,
    bin_centers,
    bins,
    bounded,
    level_values,
    moments_loss,
    nearest_levels,
    perturbed,
    rounded_levels,
    unit_variance,
    values_at,
)
from vqjax.quantizers.base import create_rotation, draw_key, mapped_axis, rotate
from vqjax.quantizers.grid import Choice, Features, GridQuantizer, Levels, TokenMask, Vectors
from vqjax.quantizers.validation import check_flags, check_input, is_count, is_number, is_weight, requirement


class FSQ(GridQuantizer):
    r"""Finite scalar quantization: squashes each feature and rounds it to one of a few values.

    The codes are all :math:`\prod_j L_j` combinations of the values of ``len(levels)`` features; none of them is
    stored, and there is no loss. The gradient crosses the rounding unchanged and the squashing function
    (:func:`vqjax.functional.scalar.bounded`) by its derivative. Indices are mixed-radix numbers in which the
    first feature varies fastest, in integers and so exact for every size.

    An input with ``num_codebooks * len(levels)`` features is quantized as it is, any other is projected there and
    back.

    Variables:
      Projections, in ``params``. With ``orthogonal_rotation``, ``rotation`` in the collection ``codebook``: drawn
      once in ``init`` and never changed.

    Attributes:
      levels: :math:`L_j`, the number of values of each feature. The paper recommends at least 5 each: (8, 6, 5) for
        about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 5, 5, 5) for 2^16.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      bound: ``"asymmetric"``: even numbers of levels include zero and one more value below it than above.
        ``"paper"``: the same by the listing in the paper. ``"symmetric"``: evenly spaced from -1 to 1.
      hard_clamp: Clip to [-1, 1] in place of the hyperbolic tangent, for inputs that are bounded already.
      noise_dropout: Probability in training with which a value is not the code, but one moved by uniform noise of up
        to half a step, within [-1, 1]; indices are those of the code. With ``bound="symmetric"``.
      orthogonal_rotation: Mix the features of a codebook by a random rotation before, and undo it after. Useful with
        the same number of levels for all.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the metrics are those of the global batch.

    Raises:
      UserError: An argument is out of range or has no effect with the others; at construction.

    Example:
      >>> import jax
      >>> from vqjax import FSQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> fsq = FSQ(levels=(8, 5, 5, 5))
      >>> variables = fsq.init(jax.random.key(1), z)
      >>> out = fsq.apply(variables, z)
      >>> out.quantized.shape, out.indices.shape, fsq.num_codes
      ((2, 8, 8, 4), (2, 8, 8), 1000)
      >>> vectors = fsq.apply(variables, out.indices, method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Mentzer et al., 2023 (arXiv 2309.15505); symmetric levels and noise: Parker et al., 2024 (arXiv
    2411.19842), Section 3.2.
    """

    levels: Sequence[int]
    num_codebooks: int = 1
    bound: Literal["paper", "asymmetric", "symmetric"] = "asymmetric"
    hard_clamp: bool = False
    noise_dropout: float = 0.0
    orthogonal_rotation: bool = False
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_levels(self)
        _check(self)

    def radices(self) -> tuple[int, ...]:
        return self.levels

    def create(self) -> None:
        if self.orthogonal_rotation:
            create_rotation(self, len(self.levels))

    def enter(self, x: Features) -> Features:
        if self.orthogonal_rotation:
            x = rotate(self, x)
        return bounded(x, self.levels, self.bound, self.hard_clamp)

    def leave(self, values: Features) -> Features:
        return rotate(self, values, inverse=True) if self.orthogonal_rotation else values

    def choose(self, x: Features, train: bool) -> Choice:
        levels = rounded_levels(x, self.levels, self.bound)
        values = self.values(levels)
        if train and self.noise_dropout > 0:
            values = self._with_noise(values)
        return Choice(levels, straight_through(x, values))

    def values(self, levels: Levels) -> Features:
        return values_at(levels, level_values(self.levels, self.bound), self.levels)

    def _with_noise(self, values: Features) -> Features:
        where_key, noise_key = jax.random.split(draw_key(self, f"noise_dropout={self.noise_dropout}"))
        half_step = jnp.broadcast_to(1 / (np.asarray(self.levels, np.float32) - 1), values.shape)
        noise = half_step * jax.random.uniform(noise_key, values.shape, minval=-1.0)
        moved = jnp.clip(values + noise, -1.0, 1.0)
        return jnp.where(jax.random.bernoulli(where_key, float(self.noise_dropout), values.shape), moved, values)


def freeze_levels(module: nn.Module) -> None:
    """Checks the field ``levels`` and makes it a tuple, so that the module can be hashed.

    Args:
      module: A quantizer with so many values per feature.

    Raises:
      UserError: Not a sequence of whole numbers of at least 2, or too many codes for an int32 index.
    """
    levels = module.levels
    if not isinstance(levels, Sequence) or not levels or not all(is_count(count) and count > 1 for count in levels):
        raise UserError(
            f"levels={levels!r} is not allowed: use whole numbers of at least 2, one per feature, such as (8, 5, 5)."
        )
    levels = tuple(int(count) for count in levels)
    if math.prod(levels) >= 2**31:
        raise UserError(
            f"levels={levels!r} is not allowed: these are {math.prod(levels)} codes, and an int32 index tells less "
            "than 2**31 apart. Use fewer levels or features, and more codebooks or quantizers."
        )
    object.__setattr__(module, "levels", levels)


def check_codebooks(module: nn.Module) -> None:
    """Refuses a number of codebooks that is none, and flags that are none."""
    check_flags(module)
    requirement(module)(is_count(module.num_codebooks), "num_codebooks", "use a whole number of at least 1.")


def _check(fsq: FSQ) -> None:
    check_codebooks(fsq)
    requirement(fsq)(fsq.bound in BOUNDS, "bound", f"use one of {', '.join(map(repr, BOUNDS))}.")
    if 2 in fsq.levels and fsq.bound != "symmetric":
        raise UserError(
            f"levels={fsq.levels!r} is not allowed with bound={fsq.bound!r}, which would put the border between two "
            "levels far from zero. Use bound='symmetric', or at least 3 levels."
        )
    in_range = is_number(fsq.noise_dropout) and 0 <= fsq.noise_dropout <= 1
    requirement(fsq)(in_range, "noise_dropout", "use a probability in [0, 1].")
    if fsq.noise_dropout > 0 and fsq.bound != "symmetric":
        raise UserError(
            f"noise_dropout={fsq.noise_dropout!r} is not allowed with bound={fsq.bound!r}: use bound='symmetric', "
            "whose outermost values are the ends of the range."
        )


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
      activation: :math:`F`, a name from :data:`vqjax.functional.scalar.DISTRIBUTIONS`.
      quantize_rate: Probability with which a value is the code in training too.
      invert: Return :math:`F^{-1}(\hat p)`, in the space of the input and with its gradient passed on unchanged,
        instead of numbers of unit variance.
      moments: What the loss asks for, a name from :data:`vqjax.functional.scalar.MOMENTS`; its statistics are those of
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

    def bypass(self, z: Vectors) -> Vectors:
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
