"""Groups of features, each with a quantizer of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from vqjax.errors import UserError
from vqjax.estimators import Estimator
from vqjax.quantizers.base import Indices, Mask, Quantizer, QuantizerOutput, Vectors
from vqjax.quantizers.validation import check_input, require, require_count


class Grouped(Quantizer):
    """Splits the features into groups and quantizes each on its own.

    Variables:
      Those of the template, once per group, under ``parts_0``, ``parts_1`` and so on.

    Attributes:
      quantizer: Template of a group's quantizer: any that quantizes vector by vector.
      groups: Number of groups; has to divide the number of features.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import FSQ, Grouped, Residual
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 6))
      >>> quantizer = Grouped(FSQ(levels=(8, 5, 5)), groups=2)
      >>> variables = quantizer.init(jax.random.key(1), z)
      >>> quantizer.apply(variables, z).indices.shape
      (2, 16, 2)
      >>> Grouped(Residual(FSQ(levels=(8, 5, 5)), num_quantizers=3), groups=2).apply(variables, z).indices.shape
      (2, 16, 2, 3)

    Source: Yang et al., 2023 (arXiv 2305.02765), Section 3.2.
    """

    quantizer: Quantizer
    groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("groups", self.groups)
        by_vector = isinstance(self.quantizer, Quantizer) and not self.quantizer.quantizes_maps
        require(by_vector, "quantizer", self.quantizer, "a quantizer of single vectors, such as VectorQuantizer(...)")

    def setup(self) -> None:
        self.parts = [self.quantizer.clone(name=None) for _ in range(self.groups)]

    @property
    def num_codes(self) -> int:
        """The number of codes of one group's codebook."""
        return self.quantizer.num_codes

    @property
    def index_shape(self) -> tuple[int, ...]:
        """An axis of groups, and the template's."""
        return (self.groups, *self.quantizer.index_shape)

    @property
    def code_features(self) -> int | None:
        """The number of features of all groups, where the template's is fixed."""
        features = self.quantizer.code_features
        return None if features is None else self.groups * features

    @property
    def axis_name(self) -> str | None:
        """The template's."""
        return self.quantizer.axis_name

    @property
    def estimator(self) -> str | Estimator:
        """The template's."""
        return self.quantizer.estimator

    @property
    def fits_residual(self) -> bool:
        """As the template."""
        return self.quantizer.fits_residual

    @property
    def codebook_dim(self) -> int | None:
        """The template's, where it projects within itself."""
        return getattr(self.quantizer, "codebook_dim", None)

    @property
    def residual_limits(self) -> tuple[float, ...] | None:
        """The template's, for each group."""
        limits = self.quantizer.residual_limits
        return None if limits is None else limits * self.groups

    @property
    def sync_nu(self) -> float:
        """The template's."""
        return self.quantizer.sync_nu

    def at_stage(self, stage: int) -> "Grouped":
        return self.clone(parent=None, name=None, quantizer=self.quantizer.at_stage(stage))

    def without_estimator(self) -> "Grouped":
        return self.clone(parent=None, name=None, quantizer=self.quantizer.without_estimator())

    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool = False, condition: Vectors | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes.
          mask: As the template takes it.
          train: As the template takes it.
          condition: None; the codes do not depend on one.

        Returns:
          Codes of all groups side by side, indices with an axis of groups after the leading axes of ``z``, the sum
          of the groups' losses, and the mean of their metrics (of dead codes: the sum).

        Raises:
          UserError: The features do not split into groups, or the template's reasons.
        """
        self._check_input(z, mask, condition)
        outputs = [part(piece, mask, train) for part, piece in zip(self.parts, self._split(z), strict=True)]
        metrics = jax.tree.map(lambda *values: sum(values) / len(values), *[output.metrics for output in outputs])
        if "dead_codes" in metrics:
            metrics["dead_codes"] = sum(output.metrics["dead_codes"] for output in outputs)
        quantized = jnp.concatenate([output.quantized for output in outputs], axis=-1)
        indices = jnp.stack([output.indices for output in outputs], axis=z.ndim - 1)
        return QuantizerOutput(quantized, indices, sum(output.loss for output in outputs), metrics)

    def encode(self, z: Vectors, mask: Mask = None) -> Indices:
        """Return indices, with an axis of groups after the leading axes of ``z``."""
        pieces = zip(self.parts, self._split(z), strict=True)
        return jnp.stack([part.encode(piece, mask) for part, piece in pieces], axis=z.ndim - 1)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32."""
        axis = indices.ndim - len(self.index_shape)
        if axis < 0 or indices.shape[axis] != self.groups:
            raise UserError(
                f"indices must have {self.groups} groups along axis {axis - indices.ndim}, got shape "
                f"{indices.shape}; pass them as encode returns them."
            )
        pieces = zip(self.parts, jnp.moveaxis(indices, axis, 0), strict=True)
        return jnp.concatenate([part.decode(piece) for part, piece in pieces], axis=-1)

    def kmeans_init(self, z: Vectors, mask: Mask = None, **options: object) -> None:
        """Start the codebooks of every group from clusters, see the template's method."""
        for part, piece in zip(self.parts, self._split(z), strict=True):
            part.kmeans_init(piece, mask, **options)

    def _split(self, z: Vectors) -> list[Float[Array, "*batch features"]]:
        check_input(z, None)
        require(z.shape[-1] % self.groups == 0, "groups", self.groups, f"a divisor of the {z.shape[-1]} features of z")
        return jnp.split(z, self.groups, axis=-1)
