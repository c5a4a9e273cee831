"""How moving averages of tokens become codes."""

import dataclasses
import math
import numbers
from typing import Literal

from vqjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EMA:
    """Settings of ``codebook_update="ema"`` beyond its decay: pass an instance instead of the name.

    Attributes:
      smoothing: Laplace smoothing of the counts. With 0, a code without tokens keeps its value; above 0, every code
        is rewritten in every batch, and codes that are never used drift to the origin (van den Oord et al., 2017,
        as in vector-quantize-pytorch with 1e-5).
      start: Counts and sums before the first batch. ``"empty"``: zeros, so that a code's first batch moves it all
        the way to the mean of its tokens. ``"one_token"``: as if each code had received itself once
        (vector-quantize-pytorch). ``"sums_only"``: sums without counts (the official rotation-trick code).
      accumulation_steps: Training calls whose counts and sums are collected before the codes move once, by their
        total: the partner of ``optax.MultiSteps(every_k_schedule=...)``.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook_update=EMA(accumulation_steps=4))
    """

    smoothing: float = 0.0
    start: Literal["empty", "one_token", "sums_only"] = "empty"
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        smoothing, steps = self.smoothing, self.accumulation_steps
        if not isinstance(smoothing, numbers.Real) or isinstance(smoothing, bool) or not 0 <= smoothing < math.inf:
            raise UserError(f"smoothing={smoothing!r} is not allowed: use 0, or a small number such as 1e-5.")
        if self.start not in ("empty", "one_token", "sums_only"):
            raise UserError(f"start={self.start!r} is not allowed: use 'empty', 'one_token' or 'sums_only'.")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"accumulation_steps={steps!r} is not allowed: use a whole number of at least 1.")
