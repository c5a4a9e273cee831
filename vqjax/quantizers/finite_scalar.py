"""Finite scalar quantization: no codebook to learn, each feature is bounded and rounded."""

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.estimators import straight_through
from vqjax.finite_scalar import BOUNDS, bounded, level_values, rounded_levels, values_at
from vqjax.quantizers.checks import check_flags, is_count, is_number, requirement
from vqjax.quantizers.devices import draw_key
from vqjax.quantizers.grid import Choice, Features, GridQuantizer, Levels
from vqjax.quantizers.orthogonal_rotation import create_rotation, rotate


class FSQ(GridQuantizer):
    r"""Finite scalar quantization: squashes each feature and rounds it to one of a few values.

    The codes are all :math:`\prod_j L_j` combinations of the values of ``len(levels)`` features; none of them is
    stored, and there is no loss. The gradient crosses the rounding unchanged and the squashing function
    (:func:`vqjax.finite_scalar.bounded`) by its derivative. Indices are mixed-radix numbers in which the first feature
    varies fastest, in integers and so exact for every size.

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
