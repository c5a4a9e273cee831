"""What the tokens of a data set have in common."""

from typing import Any, NamedTuple


class TokenInfo(NamedTuple):
    """What all tokens of a data set have in common.

    Attributes:
      num_codes: Number of codes, one for each token of a position.
      shape: Shape of an image's tokens: rows, columns and, if there are several, the tokens of a position.
      num_classes: Number of classes of the images; 0 if they have none.
      scales: Rows and columns of each scale of a multi-scale quantizer, whose tokens have one axis; None for others.
      code_dim: Features of the quantizer's map; None if they are not known.
      tokenizer: Checksum of the tokenizer that made them, under ``checksum``, where it was, under ``workdir``, and the
        step of its checkpoint, under ``step``; None if nothing is known.
      positions: Shape of an image's positions, where the tokens of a position have several axes, or one of a single
        token; None where ``num_codes`` and ``shape`` tell it.
    """

    num_codes: tuple[int, ...]
    shape: tuple[int, ...]
    num_classes: int = 0
    scales: tuple[tuple[int, int], ...] | None = None
    code_dim: int | None = None
    tokenizer: dict[str, Any] | None = None
    positions: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of an image's positions."""
        if self.positions is not None:
            return self.positions
        return self.shape[:-1] if len(self.num_codes) > 1 else self.shape

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that a model of these tokens depends on, in the types of JSON."""
        return {
            "num_codes": list(self.num_codes),
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "scales": None if self.scales is None else [list(scale) for scale in self.scales],
            "tokenizer": (self.tokenizer or {}).get("checksum"),
        }
