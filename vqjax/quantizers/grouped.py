"""Groups of features, each with a quantizer of its own."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.quantizers.base import QuantizerOutput
from vqjax.quantizers.binary import BinaryMapper
from vqjax.quantizers.grid import GridQuantizer
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.residual import ResidualQuantizer, ResidualVQ
from vqjax.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from vqjax.quantizers.validation import check_input, is_count, requirement
from vqjax.quantizers.vector import VectorQuantizer

Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None


class Grouped(nn.Module):
    """Splits the features into groups and quantizes each on its own.

    Variables:
      Those of the template, once per group, under ``parts_0``, ``parts_1`` and so on.

    Attributes:
      quantizer: Template of a group's quantizer: any of this package but grouped ones and ``MultiScaleVQ``.
      groups: Number of groups; has to divide the number of features.

    Raises:
      UserError: ``groups`` is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import FSQ, Grouped
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 6))
      >>> quantizer = Grouped(FSQ(levels=(8, 5, 5)), groups=2)
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> quantizer.apply(variables, z).indices.shape
      (2, 16, 2)
    """

    quantizer: nn.Module
    groups: int

    templates: ClassVar[tuple[type[nn.Module], ...]] = (
        *(VectorQuantizer, ResidualQuantizer, GridQuantizer, IBQ, BinaryMapper),
        RandomProjectionQuantizer,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require = requirement(self)
        require(is_count(self.groups), "groups", "use a whole number of at least 1.")
        names = ", ".join(kind.__name__ for kind in self.templates)
        require(isinstance(self.quantizer, self.templates), "quantizer", f"use one of {names}.")

    def setup(self) -> None:
        self.parts = [self.quantizer.clone(name=None) for _ in range(self.groups)]

    @property
    def num_codes(self) -> int:
        """The number of codes of one group's codebook."""
        return self.quantizer.num_codes

    @property
    def num_codebooks(self) -> int:
        """The number of indices of a token: the use of a codebook that a group's levels share is counted for each."""
        return self.groups * self._indices_of_group

    def __call__(self, z: Vectors, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes.
          mask: As the template takes it.
          train: As the template takes it.

        Returns:
          Codes of all groups side by side, indices with an axis of groups after the leading axes of ``z``, the sum
          of the groups' losses, and the mean of their metrics (of dead codes: the sum).

        Raises:
          UserError: The features do not split into groups, or the template's reasons.
        """
        outputs = [part(piece, mask, train) for part, piece in zip(self.parts, self._split(z), strict=True)]
        metrics = jax.tree.map(lambda *values: sum(values) / len(values), *[output.metrics for output in outputs])
        if "dead_codes" in metrics:
            metrics["dead_codes"] = sum(output.metrics["dead_codes"] for output in outputs)
        quantized = jnp.concatenate([output.quantized for output in outputs], axis=-1)
        indices = jnp.stack([output.indices for output in outputs], axis=z.ndim - 1)
        return QuantizerOutput(quantized, indices, sum(output.loss for output in outputs), metrics)

    def encode(self, z: Vectors, mask: Mask = None) -> Int[Array, "*indices"]:
        """Returns indices, with an axis of groups after the leading axes of ``z``."""
        pieces = zip(self.parts, self._split(z), strict=True)
        return jnp.stack([part.encode(piece, mask) for part, piece in pieces], axis=z.ndim - 1)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Returns the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32."""
        axis = indices.ndim - 1 - self._trailing_axes
        if axis < 0 or indices.shape[axis] != self.groups:
            raise UserError(
                f"indices has shape {indices.shape}: axis {axis} from the start has to be the {self.groups} groups."
            )
        pieces = jnp.moveaxis(indices, axis, 0)
        return jnp.concatenate([part.decode(piece) for part, piece in zip(self.parts, pieces, strict=True)], axis=-1)

    def bypass(self, z: Vectors) -> Vectors:
        """What infinitely fine quantizers would return."""
        pieces = zip(self.parts, self._split(z), strict=True)
        return jnp.concatenate([part.bypass(piece) for part, piece in pieces], axis=-1)

    def kmeans_init(self, z: Vectors, mask: Mask = None, **options: object) -> None:
        """Starts the codebooks of every group from clusters, see the template's method."""
        for part, piece in zip(self.parts, self._split(z), strict=True):
            part.kmeans_init(piece, mask, **options)

    @property
    def _indices_of_group(self) -> int:
        return max(getattr(self.quantizer, name, 1) for name in ("heads", "num_codebooks", "num_quantizers"))

    @property
    def _trailing_axes(self) -> int:
        """How many axes the template's indices have after the leading axes of its input."""
        return int(self._indices_of_group > 1 or hasattr(self.quantizer, "num_quantizers"))

    def _split(self, z: Vectors) -> list[Float[Array, "*batch features"]]:
        check_input(z, None)
        if z.shape[-1] % self.groups:
            raise UserError(f"groups={self.groups} is not allowed: z has {z.shape[-1]} features. Use a divisor.")
        return jnp.split(z, self.groups, axis=-1)


class GroupedResidualVQ(Grouped):
    """Groups of features, each described by several levels of codes.

    Example:
      >>> import jax
      >>> from vqjax import GroupedResidualVQ, ResidualVQ, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 8))
      >>> vq = GroupedResidualVQ(ResidualVQ(VectorQuantizer(num_codes=16), num_quantizers=3), groups=2)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> vq.apply(variables, z).indices.shape
      (2, 16, 2, 3)

    Source: Yang et al., 2023 (arXiv 2305.02765), Section 3.2.
    """

    quantizer: ResidualVQ
    templates = (ResidualVQ,)


class GroupedResidualFSQ(Grouped):
    """Groups of features, each rounded in several steps on finer and finer grids.

    Example:
      >>> import jax
      >>> from vqjax import GroupedResidualFSQ, ResidualFSQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 6))
      >>> quantizer = GroupedResidualFSQ(ResidualFSQ(levels=(5, 5, 5), num_quantizers=2), groups=2)
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> quantizer.apply(variables, z).indices.shape
      (2, 16, 2, 2)

    Source: Yang et al., 2023 (arXiv 2305.02765), Section 3.2, with the quantizer of arXiv 2309.15505.
    """

    quantizer: ResidualFSQ
    templates = (ResidualFSQ,)


class GroupedResidualLFQ(Grouped):
    """Groups of features, each described by several levels of signs.

    Example:
      >>> import jax
      >>> from vqjax import GroupedResidualLFQ, ResidualLFQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 8))
      >>> quantizer = GroupedResidualLFQ(ResidualLFQ(bits=4, num_quantizers=3), groups=2)
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> quantizer.apply(variables, z).indices.shape
      (2, 16, 2, 3)

    Source: Yang et al., 2023 (arXiv 2305.02765), Section 3.2, with the quantizer of arXiv 2310.05737.
    """

    quantizer: ResidualLFQ
    templates = (ResidualLFQ,)
