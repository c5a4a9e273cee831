"""Base class of the quantizers whose codes are a grid: each feature is quantized on its own, nothing is looked up."""

import abc
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.functional.metrics import index_statistics
from vqjax.functional.mixed_radix import to_index, to_levels
from vqjax.quantizers.base import (
    Codes,
    Indices,
    Mask,
    Quantizer,
    QuantizerOutput,
    Scalar,
    check_indices,
    decode_valid,
    zero_where_masked,
)
from vqjax.quantizers.boxes import read
from vqjax.quantizers.validation import check_flags, require, require_count

Vectors = Float[Array, "*batch dim"]
Features = Float[Array, "*tokens features"]
Levels = Int[Array, "*tokens features"]
TokenMask = Bool[Array, "*tokens"] | None

LARGEST_TABLE = 2**20
"""Largest number of codes that :meth:`GridQuantizer.code_vectors` writes down."""


class GridCodes(NamedTuple):
    """The codes of features.

    Attributes:
      levels: int32 level of every feature, in ``[0, radix)``.
      quantized: Their values bit for bit, with the gradient to the features; in training perhaps with noise.
    """

    levels: Levels
    quantized: Features


class GridQuantizer(Quantizer):
    """Base class of the quantizers whose codes are all combinations of the levels of their features.

    A subclass has the field ``num_codebooks``, and defines :meth:`radices`, :meth:`quantize`, :meth:`values` and, as
    needed, :meth:`create_variables`, :meth:`preprocess`, :meth:`postprocess`, :meth:`latents` and :meth:`losses`. An
    input with ``num_codebooks * len(radices)`` features is quantized as it is; any other is
    projected to that number and back by two linear maps. Each codebook has an index; with several, indices get a
    last axis.
    """

    differs_in_training = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        require_count("num_codebooks", self.num_codebooks)

    @abc.abstractmethod
    def radices(self) -> tuple[int, ...]:
        """Return the number of levels of each feature of a codebook; the first feature varies fastest in an index."""

    @abc.abstractmethod
    def quantize(self, x: Features, train: bool) -> GridCodes:
        """Quantize preprocessed features, with the gradient of an estimator."""

    @abc.abstractmethod
    def values(self, levels: Levels) -> Features:
        """Return the values of levels by the operations of :meth:`quantize`, so that both agree bit for bit."""

    def create_variables(self) -> None:
        """Create variables other than projections, in ``init``."""

    def preprocess(self, x: Features) -> Features:
        """Prepare features for quantization (bounds, rotations, normalization)."""
        return x

    def postprocess(self, values: Features) -> Features:
        """Finish codes before they are returned (the inverse of a rotation)."""
        return values

    def latents(self, x: Features) -> Features:
        """Return preprocessed features in the space of the codes, for the quantization error."""
        return x

    def losses(self, x: Features, codes: Features, mask: TokenMask) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the weighted loss and its unweighted terms; ``codes`` carry the gradient of :meth:`values` alone."""
        return jnp.zeros((), jnp.float32), {}

    @property
    def num_codes(self) -> int:
        """The number of codes of one codebook."""
        return math.prod(self.radices())

    @property
    def code_features(self) -> int:
        """The number of features of all codebooks."""
        return self.num_codebooks * len(self.radices())

    @property
    def index_shape(self) -> tuple[int, ...]:
        """An axis of codebooks, if there are several."""
        return () if self.num_codebooks == 1 else (self.num_codebooks,)

    @nn.compact
    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool | None = None, condition: Vectors | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses or statistics, receive no gradient, and
            come back as zero vectors with index -1.
          train: Draw the noise of training; must be given here or at construction if there is any.
          condition: None; the codes do not depend on one.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``relative_error``,
          ``perplexity`` and ``usage`` (of this batch, mean over codebooks) and each term of the loss.

        Raises:
          UserError: An input has the wrong dtype or shape; noise is drawn and there is no ``train`` or no ``quantizer``
            key.
        """
        self._check_input(z, mask, condition)
        train = self._is_training(train)
        if self.is_initializing():
            self._create_projections(z.shape[-1], self.code_features)
            self.create_variables()
        x = self._to_features(zero_where_masked(z, mask))
        levels, quantized = self.quantize(x, train)
        codes = self.values(levels)
        token_mask = None if mask is None else jnp.broadcast_to(mask[..., None], x.shape[:-1])
        loss, terms = self.losses(x, codes, token_mask)
        metrics = self._errors(self.latents(x), codes, token_mask) | terms | self._statistics(levels, token_mask)
        quantized = zero_where_masked(self._to_vectors(quantized).astype(z.dtype), mask)
        indices = self._mask_indices(self._to_indices(levels), mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None) -> Indices:
        """Return the index of each vector's code.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices; with several codebooks, along a new last axis.
        """
        self._check_input(z, mask)
        x = self._to_features(zero_where_masked(z, mask))
        return self._mask_indices(self._to_indices(self.quantize(x, train=False).levels), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Indices of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector,
            anything else NaN. With several codebooks, their axis is the last one.

        Returns:
          Vectors in float32.
        """
        check_indices(indices)
        if self.index_shape and indices.shape[-1:] != self.index_shape:
            raise UserError(
                f"indices must have {self.num_codebooks} codebooks along the last axis, got shape {indices.shape}; "
                "pass them as encode returns them."
            )
        decode = lambda valid: self._to_vectors(self.values(to_levels(valid, self.radices())))  # noqa: E731
        indices = indices[..., None] if self.num_codebooks == 1 else indices
        return decode_valid(decode, indices, self.num_codes, several=True)

    def code_vectors(self) -> Codes:
        expected = f"at most {LARGEST_TABLE} to return all codes"
        require(self.num_codes <= LARGEST_TABLE, "num_codes", self.num_codes, expected, "decode the indices you need")
        return self.postprocess(self.values(to_levels(jnp.arange(self.num_codes), self.radices())))

    def bypass(self, z: Vectors) -> Vectors:
        """Apply projections and bounds without rounding, as if the grid were infinitely fine.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors in the input's dtype, with the plain gradient.
        """
        self._check_input(z, None)
        return self._to_vectors(self._to_code_space(z)).astype(z.dtype)

    def _to_features(self, z: Vectors) -> Features:
        """Return preprocessed features in float32, with an axis of codebooks before the last one."""
        z = self._project_in(z, self.code_features)
        return self.preprocess(z.reshape(*z.shape[:-1], self.num_codebooks, len(self.radices())))

    def _to_code_space(self, z: Vectors) -> Features:
        return self.latents(self._to_features(z))

    def _to_vectors(self, values: Features) -> Vectors:
        values = self.postprocess(values)
        return self._project_out(values.reshape(*values.shape[:-2], self.code_features))

    def _to_indices(self, levels: Levels) -> Indices:
        indices = to_index(levels, self.radices())
        return indices[..., 0] if self.num_codebooks == 1 else indices

    def _statistics(self, levels: Levels, mask: TokenMask) -> dict[str, Scalar]:
        indices = to_index(levels, self.radices())
        by_codebook = [
            index_statistics(indices[..., c], self.num_codes, None if mask is None else mask[..., c], self._batch_axis)
            for c in range(self.num_codebooks)
        ]
        return jax.tree.map(lambda *values: sum(values) / len(values), *by_codebook)

    def _create_rotation(self) -> None:
        """Draw ``codebook["rotation"]`` of the features of a codebook, in ``init``."""
        draw, features = nn.initializers.orthogonal(), len(self.radices())
        self.variable(
            "codebook", "rotation", lambda: draw(self.make_rng("quantizer"), (features, features), jnp.float32)
        )

    def _rotate(self, x: Features, inverse: bool = False) -> Features:
        """Rotate features by the stored rotation, or back."""
        rotation = read(self, "codebook", "rotation")
        if rotation is None or rotation.shape[0] != x.shape[-1]:
            found = "none" if rotation is None else f"one of shape {rotation.shape}"
            raise UserError(
                f"The variables must hold a rotation of {x.shape[-1]} features, got {found}; create them with "
                "init(key, z), using the same settings, and pass all collections to apply, not only params."
            )
        return jnp.matmul(x, rotation.T if inverse else rotation, precision=jax.lax.Precision.HIGHEST)
