"""Groups of features, each with its own quantizer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from vqjax.errors import UserError
from vqjax.estimators import Estimator
from vqjax.functional.numbers import Number
from vqjax.quantizers.base import (
    Features,
    Indices,
    Mask,
    Quantizer,
    QuantizerOutput,
    Scalar,
    Vectors,
    check_indices,
    combine_metrics,
    usage_by_part,
    zero_where_masked,
)
from vqjax.quantizers.validation import check_input, require, require_count


class Grouped(Quantizer):
    """Quantizer that splits the features into groups and quantizes each on its own.

    Variables:
      Those of ``quantizer``, once per group, under ``parts_0``, ``parts_1`` and so on.

    Attributes:
      quantizer: Template of the groups: the quantizer that every group has a copy of. It must quantize vector by
        vector.
      groups: Number of groups; must divide the number of features.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

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
        self._check_template()

    def setup(self) -> None:
        self.parts = [self.quantizer.clone(name=None) for _ in range(self.groups)]

    @property
    def num_codes(self) -> int:
        """The number of codes of one group's codebook."""
        return self.quantizer.num_codes

    @property
    def index_shape(self) -> tuple[int, ...]:
        """An axis of groups, followed by the axes of ``quantizer``."""
        return (self.groups, *self.quantizer.index_shape)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of codes that each index of a vector chooses from."""
        of_group = self.quantizer.codebook_sizes
        # A template whose indices share a codebook counts them together, which groups cannot.
        shared = len(of_group) < math.prod(self.quantizer.index_shape)
        return super().codebook_sizes if shared else of_group * self.groups

    @property
    def code_features(self) -> int | None:
        """The number of features of all groups, if that of ``quantizer`` is fixed."""
        features = self.quantizer.code_features
        return None if features is None else self.groups * features

    @property
    def axis_name(self) -> str | None:
        """The ``axis_name`` of ``quantizer``."""
        return self.quantizer.axis_name

    @property
    def differs_in_training(self) -> bool:
        """As for ``quantizer``."""
        return self.quantizer.differs_in_training

    @property
    def estimator(self) -> str | Estimator:
        """The estimator of ``quantizer``."""
        return self.quantizer.estimator

    @property
    def fits_residual(self) -> bool:
        """As for ``quantizer``."""
        return self.quantizer.fits_residual

    @property
    def codebook_dim(self) -> int | None:
        """The ``codebook_dim`` of ``quantizer``, if it has one."""
        return getattr(self.quantizer, "codebook_dim", None)

    @property
    def residual_limits(self) -> tuple[float, ...] | None:
        """The limits of ``quantizer``, repeated for each group."""
        limits = self.quantizer.residual_limits
        return None if limits is None else limits * self.groups

    @property
    def sync_nu(self) -> Number:
        """The ``sync_nu`` of ``quantizer``."""
        return self.quantizer.sync_nu

    def at_stage(self, stage: int) -> "Grouped":
        return self.clone(parent=None, name=None, quantizer=self.quantizer.at_stage(stage))

    def without_estimator(self) -> "Grouped":
        return self.clone(parent=None, name=None, quantizer=self.quantizer.without_estimator())

    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool | None = None, condition: Vectors | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes.
          mask: As for ``quantizer``.
          train: As for ``quantizer``.
          condition: Must be None: the codes do not depend on one.

        Returns:
          Codes of all groups side by side, indices with an axis of groups after the leading axes of ``z``, the sum
          of the groups' losses, and these metrics:

          * ``relative_error``: the error of all groups over the mean square of all their latents; ``rms_latents`` and
            ``rms_codes`` of all groups;
          * ``dead_codes``: the total of the groups;
          * ``perplexity_group_0``, ``usage_group_0``, ``dead_codes_group_0`` and so on of each group;
          * the mean over groups of all other metrics.

        Raises:
          UserError: The number of features is not divisible by ``groups``, or ``quantizer`` raises it.
        """
        self._check_input(z, mask, condition)
        train = self._is_training(train)
        outputs = [part(piece, mask, train) for part, piece in zip(self.parts, self._split(z), strict=True)]
        metrics = self._combine([output.metrics for output in outputs], z, mask)
        quantized = jnp.concatenate([output.quantized for output in outputs], axis=-1)
        indices = jnp.stack([output.indices for output in outputs], axis=z.ndim - 1)
        return QuantizerOutput(quantized, indices, sum(output.loss for output in outputs), metrics)

    def encode(self, z: Vectors, mask: Mask = None, **options: object) -> Indices:
        """Return indices, with an axis of groups after the leading axes of ``z``.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.
          **options: Further arguments of the ``encode`` of ``quantizer``, such as ``num_quantizers`` of
            :class:`Residual`.

        Returns:
          int32 indices.
        """
        pieces = zip(self.parts, self._split(z), strict=True)
        return jnp.stack([part.encode(piece, mask, **options) for part, piece in pieces], axis=z.ndim - 1)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32."""
        check_indices(indices)
        axis = indices.ndim - len(self.index_shape)
        if axis < 0 or indices.shape[axis] != self.groups:
            raise UserError(
                f"indices must have {self.groups} groups along axis {axis - indices.ndim}, got shape "
                f"{indices.shape}; pass them as encode returns them."
            )
        # JAX would cut 64 bits to 32, and make valid indices of wrong ones.
        move = np.moveaxis if isinstance(indices, np.ndarray) else jnp.moveaxis
        pieces = zip(self.parts, move(indices, axis, 0), strict=True)
        return jnp.concatenate([part.decode(piece) for part, piece in pieces], axis=-1)

    def code_vectors(self) -> tuple[Any, ...]:
        """Return the codes of each group, as its quantizer's ``code_vectors`` does."""
        return tuple(part.code_vectors() for part in self.parts)

    def kmeans_init(self, z: Vectors, mask: Mask = None, **options: object) -> None:
        """Initialize the codebooks of every group with k-means, as the ``kmeans_init`` of ``quantizer``."""
        for part, piece in zip(self.parts, self._split(z), strict=True):
            part.kmeans_init(piece, mask, **options)

    def _combine(self, metrics: list[dict[str, Scalar]], z: Vectors, mask: Mask) -> dict[str, Scalar]:
        """Return the metrics of all groups together, and the use of the codes of each."""
        combined = combine_metrics(metrics)
        if "relative_error" in combined:
            # Not the mean of ratios, in which a group of small latents would count as much as the others.
            latents = self._to_code_space(zero_where_masked(z, mask))
            error = self._relative_error(combined["quantization_error"], latents, mask)
            combined["relative_error"] = jax.lax.stop_gradient(error)
        for name in {"rms_latents", "rms_codes"} & combined.keys():
            combined[name] = jnp.sqrt(jnp.mean(jnp.square(jnp.stack([of_group[name] for of_group in metrics]))))
        return combined | usage_by_part(metrics, "group_")

    def _to_code_space(self, z: Vectors) -> Features:
        pieces = [part._to_code_space(piece) for part, piece in zip(self.parts, self._split(z), strict=True)]
        # Heads and codebooks have axes of their own.
        # Sizes in full, as a batch without tokens leaves none to be inferred.
        rows = [piece.reshape(*z.shape[:-1], math.prod(piece.shape[z.ndim - 1 :])) for piece in pieces]
        return jnp.concatenate(rows, axis=-1)

    def _split(self, z: Vectors) -> list[Float[Array, "*batch features"]]:
        check_input(z, None)
        require(z.shape[-1] % self.groups == 0, "groups", self.groups, f"a divisor of the {z.shape[-1]} features of z")
        return jnp.split(z, self.groups, axis=-1)
