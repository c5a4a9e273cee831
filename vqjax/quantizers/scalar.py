"""Scalar quantizers: each feature takes one of its few values, which are fixed (FSQ, FSP) or learned (latent)."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.functional.numbers import Number, is_number, is_traced, to_scalar
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
from vqjax.quantizers.base import Scalar
from vqjax.quantizers.boxes import read
from vqjax.quantizers.grid import Features, GridCodes, GridQuantizer, Levels, TokenMask
from vqjax.quantizers.validation import (
    is_count,
    require,
    require_choice,
    require_probability,
    require_weight,
)


class LevelQuantizer(GridQuantizer):
    """Base class of the grids that are given by the number of levels of each feature."""

    levels: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = isinstance(self.levels, Sequence) and self.levels and all(is_count(n) and n > 1 for n in self.levels)
        expected = "integers of at least 2, one per feature, such as (8, 5, 5)"
        require(bool(valid), "levels", self.levels, expected)
        # A module has to be hashable, and lists come from configs.
        object.__setattr__(self, "levels", tuple(int(count) for count in self.levels))
        advice = "an int32 index cannot hold more; use fewer levels or features, and more codebooks or quantizers"
        require(
            self.num_codes < 2**31, "levels", self.levels, f"of fewer than 2**31 codes, not {self.num_codes}", advice
        )

    def radices(self) -> tuple[int, ...]:
        return self.levels


class FSQ(LevelQuantizer):
    r"""Finite scalar quantization: squashes each feature and rounds it to one of a few values.

    The codes are all :math:`\prod_j L_j` combinations of the values of ``len(levels)`` features; none of them is
    stored, and there is no loss. The gradient passes through the rounding unchanged (straight-through), and through the
    squashing function (:func:`vqjax.functional.scalar.bounded`) by its derivative. Indices are mixed-radix numbers in
    which the first feature varies fastest, computed in integers and so exact for every size.

    An input with ``num_codebooks * len(levels)`` features is quantized as it is, any other is projected to that number
    and back. ``Residual(FSQ(levels), n)`` refines each value by symmetric grids, see :class:`FSQStage`.

    Variables:
      Projections, in ``params``. With ``orthogonal_rotation``, ``rotation`` in the collection ``codebook``: drawn
      once in ``init`` and never changed.

    Attributes:
      levels: :math:`L_j`, the number of values of each feature. The paper recommends at least 5 each: (8, 6, 5) for
        about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 5, 5, 5) for 2^16.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      bound: ``"asymmetric"``: even numbers of levels include zero and one more value below it than above.
        ``"paper"``: the same by the listing in the paper. ``"symmetric"``: evenly spaced from -1 to 1.
      hard_clamp: Clip to [-1, 1] in place of the hyperbolic tangent, for inputs that are bounded already. None: only in
        the stages of :class:`Residual`, whose sum converges to the input only then.
      noise_dropout: Probability with which, in training, uniform noise of up to half a step is added to a value, within
        [-1, 1]; indices are those of the code. With ``bound="symmetric"``; None for no noise.
      orthogonal_rotation: Mix the features of a codebook by a random rotation before, and undo it after. Useful with
        the same number of levels for all.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the metrics are those of the global batch.

    Raises:
      UserError: Raised by the constructor if an argument is out of range, or is set but would have no effect.

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

    num_codebooks: int = 1
    bound: Literal["paper", "asymmetric", "symmetric"] = "asymmetric"
    hard_clamp: bool | None = None
    noise_dropout: Number | None = None
    orthogonal_rotation: bool = False
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("bound", self.bound, BOUNDS)
        require(self.hard_clamp in (None, True, False), "hard_clamp", self.hard_clamp, "True, False or None")
        require_probability("noise_dropout", self.noise_dropout)
        # The border between two levels would be far from zero, and that of noise within the range.
        symmetric = self.bound == "symmetric"
        require(symmetric or 2 not in self.levels, "levels", self.levels, "at least 3 each", "or use bound='symmetric'")
        advice = "or use bound='symmetric', whose outermost values are the ends of the range"
        require(symmetric or self.noise_dropout is None, "noise_dropout", self.noise_dropout, "None", advice)

    @property
    def differs_in_training(self) -> bool:
        """True if training adds noise."""
        return self.noise_dropout is not None

    @property
    def residual_limits(self) -> tuple[float, ...] | None:
        """Half a step beyond the outermost values, to which stages clip; later stages reach what the first leaves."""
        if self.hard_clamp is False:
            return None
        return tuple(1 + 1 / (count - 1) for count in self.levels) * self.num_codebooks

    def at_stage(self, stage: int) -> "FSQStage":
        require(self.bound != "paper", "bound", self.bound, "'symmetric' or left out in Residual")
        require(self.noise_dropout is None, "noise_dropout", self.noise_dropout, "None in Residual")
        require(not self.orthogonal_rotation, "orthogonal_rotation", True, "False in Residual")
        settings = {"num_codebooks": self.num_codebooks, "axis_name": self.axis_name}
        return FSQStage(self.levels, stage, self.hard_clamp is not False, **settings, parent=None)

    def create_variables(self) -> None:
        if self.orthogonal_rotation:
            self._create_rotation()

    def preprocess(self, x: Features) -> Features:
        x = self._rotate(x) if self.orthogonal_rotation else x
        return bounded(x, self.levels, self.bound, bool(self.hard_clamp))

    def postprocess(self, values: Features) -> Features:
        return self._rotate(values, inverse=True) if self.orthogonal_rotation else values

    def quantize(self, x: Features, train: bool) -> GridCodes:
        levels = rounded_levels(x, self.levels, self.bound)
        values = self.values(levels)
        if train and self.noise_dropout is not None:
            values = self._with_noise(values)
        return GridCodes(levels, straight_through(x, values))

    def values(self, levels: Levels) -> Features:
        return values_at(levels, level_values(self.levels, self.bound), self.levels)

    def _with_noise(self, values: Features) -> Features:
        where_key, noise_key = jax.random.split(self._draw_key(f"noise_dropout={self.noise_dropout}"))
        half_step = jnp.broadcast_to(1 / (np.asarray(self.levels, np.float32) - 1), values.shape)
        noise = half_step * jax.random.uniform(noise_key, values.shape, jnp.float32, minval=-1.0)
        moved = jnp.clip(values + noise, -1.0, 1.0)
        return jnp.where(jax.random.bernoulli(where_key, to_scalar(self.noise_dropout), values.shape), moved, values)


class FSQStage(LevelQuantizer):
    r"""A stage of ``Residual(FSQ(levels), n)``: rounds to a grid :math:`L` times finer than that of the stage before.

    .. math:: q_i = s_i\, Q(r_i / s_i),\quad s_i = L^{-i}

    for :math:`i = 0, 1, \dots` and each feature by itself, where :math:`Q` rounds to :math:`L` values evenly spaced
    from -1 to 1. Stage :math:`i` leaves at most :math:`s_i/(L-1)` of each feature if :math:`Q` clips. With a
    hyperbolic tangent in it the sum of codes does not converge to the input.

    Attributes:
      levels: :math:`L`, the number of values of each feature.
      stage: :math:`i`.
      hard_clamp: Clip to [-1, 1] in place of the hyperbolic tangent.
      num_codebooks: Groups of features with an index each.
      axis_name: See :class:`FSQ`.

    Source: Mentzer et al., 2023 (arXiv 2309.15505), within Zeghidour et al., 2021 (arXiv 2107.03312), Algorithm 1.
    """

    stage: int
    hard_clamp: bool
    num_codebooks: int = 1
    axis_name: str | None = None

    def quantize(self, x: Features, train: bool) -> GridCodes:
        scale = jnp.broadcast_to(jnp.asarray(self._scales(), jnp.float32), x.shape)
        x = bounded(x / scale, self.levels, "symmetric", self.hard_clamp)
        levels = rounded_levels(x, self.levels, "symmetric")
        return GridCodes(levels, straight_through(scale * x, self.values(levels)))

    def values(self, levels: Levels) -> Features:
        values = level_values(self.levels, "symmetric") * np.repeat(self._scales(), self.levels)
        return values_at(levels, values.astype(np.float32), self.levels)

    def _scales(self) -> Float[np.ndarray, " features"]:
        return np.asarray(self.levels, np.float64) ** -self.stage


_EPSILON = float(np.finfo(np.float32).eps)


class FSP(LevelQuantizer):
    r"""Finite scalar perturbation: each feature goes through a distribution function and into one of equal bins.

    .. math:: p = F(z),\quad l = \lfloor p L \rfloor,\quad \hat p = \frac{l + 1/2}{L},\quad
      q = \sqrt{12}\,(\hat p - \tfrac12)\ \ \text{or}\ \ F^{-1}(\hat p)

    In training most values are not the code: :math:`\hat p` is then :math:`p` plus uniform noise of up to half a bin,
    so that the decoder sees the range of values that a code stands for. The gradient passes through bins and noise
    unchanged. The loss draws the moments of the features to those that ``moments`` names: only with those of
    :math:`F`, as the two defaults have it, are all bins used equally.

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
      moments: Moments that the loss draws the features to, a name from :data:`vqjax.functional.scalar.MOMENTS`, or
        None for no loss; its statistics are those of the unmasked tokens of the global batch.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the batch is split. Leave it None under plain ``jit``.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

    Example:
      >>> import jax
      >>> from vqjax import FSP
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 3))
      >>> fsp = FSP(levels=(8, 8, 8))
      >>> out = fsp.apply({}, z, train=True, rngs={"quantizer": jax.random.key(1)})
      >>> exact = fsp.apply({}, z, train=False)
      >>> bool((out.indices == exact.indices).all()), bool((out.quantized == exact.quantized).any())
      (True, False)

    Source: Finite scalar perturbation, 2026 (arXiv 2602.17133).
    """

    activation: str = "tanh"
    quantize_rate: Number = 0.0
    invert: bool = False
    moments: str | None = "tanh"
    num_codebooks: int = 1
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("activation", self.activation, DISTRIBUTIONS)
        require_choice("moments", self.moments, (*MOMENTS, None))
        in_range = is_number(self.quantize_rate, lambda rate: 0 <= rate <= 1)
        require(in_range, "quantize_rate", self.quantize_rate, "a probability in [0, 1]")

    @property
    def differs_in_training(self) -> bool:
        """True if training adds noise."""
        return is_traced(self.quantize_rate) or self.quantize_rate < 1

    @property
    def fits_residual(self) -> bool:
        """True if the codes are in the space of the input."""
        return self.invert

    def quantize(self, x: Features, train: bool) -> GridCodes:
        p = DISTRIBUTIONS[self.activation].cdf(x)
        levels = bins(p, self.levels)
        values = self.values(levels)
        if train and self.differs_in_training:
            values = self._with_noise(p, values)
        return GridCodes(levels, straight_through(self.latents(x), values))

    def values(self, levels: Levels) -> Features:
        # Evaluated once and not within the program, whose compiler may round differently each time.
        with jax.ensure_compile_time_eval():
            values = np.asarray(self._code_of(bin_centers(self.levels)))
        return values_at(levels, values, self.levels)

    def latents(self, x: Features) -> Features:
        # Not in `preprocess`: the loss is for the features before the distribution function.
        return x if self.invert else unit_variance(DISTRIBUTIONS[self.activation].cdf(x))

    def losses(self, x: Features, codes: Features, mask: TokenMask) -> tuple[Scalar, dict[str, Scalar]]:
        if self.moments is None:
            return jnp.zeros((), jnp.float32), {}
        features = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
        loss = moments_loss(features, MOMENTS[self.moments], None if mask is None else mask[..., 0], self._batch_axis)
        return loss, {"moments_loss": loss}

    def _code_of(self, p: Float[Array | np.ndarray, "*shape"]) -> Float[Array | np.ndarray, "*shape"]:
        if not self.invert:
            return unit_variance(p)
        return DISTRIBUTIONS[self.activation].inverse(jnp.clip(jnp.asarray(p, jnp.float32), _EPSILON, 1 - _EPSILON))

    def _with_noise(self, p: Features, values: Features) -> Features:
        where_key, noise_key = jax.random.split(self._draw_key(f"quantize_rate={self.quantize_rate}, below 1,"))
        noisy = self._code_of(perturbed(noise_key, p, self.levels))
        return jnp.where(jax.random.bernoulli(where_key, to_scalar(self.quantize_rate), p.shape), values, noisy)


class LatentQuantizer(LevelQuantizer):
    r"""Quantizer that replaces each feature by the nearest of a few learned values of that feature.

    .. math:: q_j = v_{j l},\quad l = \arg\min_m |z_j - v_{j m}|

    The gradient passes unchanged, and the loss is

    .. math:: \beta\, |z - \mathrm{sg}(q)|^2 + \alpha\, |\mathrm{sg}(z) - q|^2

    averaged over unmasked tokens and features, in the space of the codes (after ``project_in`` and before
    ``project_out``). Its second term alone trains the values, which all codebooks share.

    An input with ``num_codebooks * len(levels)`` features is quantized as it is, any other is projected there and
    back.

    Variables:
      ``params`` holds ``code_values``: ``sum(levels)`` numbers, the values of one feature after the other, at first
      evenly spaced from -0.5, to 0.5 if their number is odd and to one step less if it is even, so that zero is one of
      them; and the projections.

    Attributes:
      levels: Number of values of each feature.
      num_codebooks: Groups of features with an index each; above 1 the indices get a last axis.
      commitment_weight: :math:`\beta`, draws the input to the values.
      quantization_weight: :math:`\alpha`, draws the values to the input.
      learn_values: Whether the values are learned; otherwise they keep their initial values.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which the batch is split. Leave it None under plain ``jit``;
        average gradients over the axis of ``pmap``, and the loss over that of ``shard_map``.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

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

    num_codebooks: int = 1
    commitment_weight: Number = 0.1
    quantization_weight: Number = 0.1
    learn_values: bool = True
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight("commitment_weight", self.commitment_weight)
        require_weight("quantization_weight", self.quantization_weight)

    def create_variables(self) -> None:
        if self.learn_values:
            self.param("code_values", lambda key: jnp.asarray(self._initial_values()))

    def quantize(self, x: Features, train: bool) -> GridCodes:
        levels = nearest_levels(x, self._values(), self.levels)
        return GridCodes(levels, straight_through(x, self.values(levels)))

    def values(self, levels: Levels) -> Features:
        return values_at(levels, self._values(), self.levels)

    def losses(self, x: Features, codes: Features, mask: TokenMask) -> tuple[Scalar, dict[str, Scalar]]:
        constant, constant_codes = jax.lax.stop_gradient((x, codes))
        commitment = self._squared_distance(x, constant_codes, mask)
        quantization = self._squared_distance(constant, codes, mask)
        loss = self.commitment_weight * commitment + self.quantization_weight * quantization
        return loss, {"commitment_loss": commitment, "quantization_loss": quantization}

    def _values(self) -> Float[Array, " values"]:
        if not self.learn_values:
            return jnp.asarray(self._initial_values())
        values = read(self, "params", "code_values")
        if values is None or values.shape != (sum(self.levels),):
            found = "none" if values is None else str(values.shape[0])
            raise UserError(
                f"The variables must hold {sum(self.levels)} values for levels={self.levels!r}, got {found}; pass all "
                "collections of init(key, z) of a quantizer with the same settings to apply."
            )
        return values.astype(jnp.float32)

    def _initial_values(self) -> Float[np.ndarray, " values"]:
        """Return evenly spaced values, with zero among them."""
        return np.concatenate([np.arange(n) / (n - n % 2) - 0.5 for n in self.levels]).astype(np.float32)
