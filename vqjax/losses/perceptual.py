"""A perceptual distance as a term of a loss."""

import dataclasses
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from vqjax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class PerceptualLoss:
    """A perceptual distance with its variables, as a term of a loss.

    Attributes:
      module: A module that maps two batches of images in [-1, 1] to a distance per image, such as
        :class:`vqjax.models.lpips.LPIPS`.
      variables: Its variables, which training does not change.
      weight: Weight of the mean distance in the loss.

    Raises:
      UserError: The weight is not above zero.
    """

    module: nn.Module
    variables: PyTree[Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be above 0, got {self.weight}; leave the perceptual loss out for none.")
