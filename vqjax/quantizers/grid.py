"""The common part of quantizers whose codes are a grid: every feature is quantized by itself, nothing is looked up."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.functional.metrics import index_statistics, masked_mean
from vqjax.functional.mixed_radix import to_index, to_levels
from vqjax.quantizers.base import (
    QuantizerOutput,
    create_projections,
    decode_valid,
    has_projections,
    inner_features,
    mapped_axis,
    minus_one_where_masked,
    outer_features,
    project,
    zero_where_masked,
)
from vqjax.quantizers.validation import check_input

Vectors = Float[Array, "*batch dim"]
Features = Float[Array, "*tokens features"]
Levels = Int[Array, "*tokens features"]
Mask = Bool[Array, "*batch"] | None
TokenMask = Bool[Array, "*tokens"] | None


class Choice(NamedTuple):
    """What a quantizer makes of features.

    Attributes:
      levels: int32 level of every feature, in ``[0, radix)``.
      quantized: What the quantizer returns for them, with its gradient: the values of the levels bit for bit, except
        where noise is asked for in training.
    """

    levels: Levels
    quantized: Features


class GridQuantizer(nn.Module):
    """Base of the quantizers whose codes are all combinations of the levels of their features.

    A subclass has the fields ``num_codebooks`` and ``axis_name``, and says what is its own: :meth:`radices`,
    :meth:`choose`, :meth:`values` and, where it has them, :meth:`create`, :meth:`enter`, :meth:`leave` and
    :meth:`losses`. An input with ``num_codebooks * len(radices)`` features is quantized as it is; one with another
    number is projected there and back by two linear maps. With several codebooks the indices get a last axis.
    """

    def radices(self) -> tuple[int, ...]:
        """The number of levels of each feature of a codebook; the first feature varies fastest in an index."""
        raise NotImplementedError

    def choose(self, x: Features, train: bool) -> Choice:
        """Quantizes features in float32; gradients cross here."""
        raise NotImplementedError

    def values(self, levels: Levels) -> Features:
        """The code of levels; the very operations that :meth:`choose` uses, so that both agree bit for bit."""
        raise NotImplementedError

    def create(self) -> None:
        """Creates variables of its own, in ``init``."""

    def enter(self, x: Features) -> Features:
        """What happens to features before they are quantized (bounds, rotations, normalization)."""
        return x

    def leave(self, values: Features) -> Features:
        """What happens to codes before they are returned (the inverse of a rotation)."""
        return values

    def losses(
        self, x: Features, codes: Features, mask: TokenMask
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted loss and its unweighted terms; ``codes`` carry the gradient of :meth:`values` alone."""
        return jnp.zeros(()), {}

    @property
    def num_codes(self) -> int:
        """The number of codes of one codebook."""
        return math.prod(self.radices())

    @nn.compact
    def __call__(self, z: Vectors, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses or statistics, receive no gradient, and
            come back as zero vectors with index -1.
          train: Draw the noise of training, where there is such.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``perplexity`` and ``usage`` (of
          this batch, mean over codebooks) and each term of the loss.

        Raises:
          UserError: ``z`` or ``mask`` of the wrong kind; no ``quantizer`` key where noise is drawn.
        """
        check_input(z, mask)
        if self.is_initializing():
            if z.shape[-1] != self._features:
                create_projections(self, z.shape[-1], self._features)
            self.create()
        self._check_features(z)
        x = self._features_of(zero_where_masked(z, mask))
        choice = self.choose(x, train and not self.is_initializing())
        codes = self.values(choice.levels)
        token_mask = None if mask is None else jnp.broadcast_to(mask[..., None], x.shape[:-1])
        loss, terms = self.losses(x, codes, token_mask)
        error = jnp.mean(jnp.square(x - codes), axis=-1)
        metrics = {"quantization_error": self._mean(error, token_mask)} | terms | self._statistics(choice, token_mask)
        quantized = zero_where_masked(self._vectors_of(choice.quantized).astype(z.dtype), mask)
        indices = minus_one_where_masked(
            self._indices_of(choice.levels), mask if self.num_codebooks == 1 else token_mask
        )
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None) -> Int[Array, "*indices"]:
        """Returns the index of each vector's code.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices; with several codebooks, along a new last axis.
        """
        check_input(z, mask)
        self._check_features(z)
        x = self._features_of(zero_where_masked(z, mask))
        indices = self._indices_of(self.choose(x, train=False).levels)
        if mask is not None and self.num_codebooks > 1:
            mask = jnp.broadcast_to(mask[..., None], indices.shape)
        return minus_one_where_masked(indices, mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Returns the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector, anything
            else NaN. With several codebooks, their axis is the last one.

        Returns:
          Vectors in float32.
        """
        if self.num_codebooks > 1 and indices.shape[-1:] != (self.num_codebooks,):
            raise UserError(
                f"indices has shape {indices.shape}: its last axis has to be the {self.num_codebooks} codebooks."
            )
        decode = lambda valid: self._vectors_of(self.values(to_levels(valid, self.radices())))  # noqa: E731
        indices = indices[..., None] if self.num_codebooks == 1 else indices
        return decode_valid(decode, indices, self.num_codes, several=True)

    def bypass(self, z: Vectors) -> Vectors:
        """What infinitely many levels would return: everything but the quantization.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors in the input's dtype, with the plain gradient.
        """
        check_input(z, None)
        self._check_features(z)
        return self._vectors_of(self._features_of(z)).astype(z.dtype)

    @property
    def _features(self) -> int:
        return self.num_codebooks * len(self.radices())

    def _check_features(self, z: Vectors) -> None:
        inner = inner_features(self) if has_projections(self) else self._features
        if inner != self._features:
            raise UserError(
                f"The codebook has {self._features} features, but the projections in the variables were made for "
                f"{inner}: use the settings they were made with, or initialize anew."
            )
        expected = outer_features(self) if has_projections(self) else self._features
        if z.shape[-1] != expected:
            made_for = "the projections in the variables were" if has_projections(self) else "the codebook is"
            raise UserError(
                f"z has {z.shape[-1]} features, but {made_for} made for {expected}: pass z of {expected} features, "
                "or initialize anew and pass all collections on to apply."
            )

    def _features_of(self, z: Vectors) -> Features:
        """In float32, with an axis of codebooks before the last one."""
        z = z.astype(jnp.float32)
        if has_projections(self):
            z = project(self, "project_in", z)
        return self.enter(z.reshape(*z.shape[:-1], self.num_codebooks, len(self.radices())))

    def _vectors_of(self, values: Features) -> Vectors:
        values = self.leave(values)
        values = values.reshape(*values.shape[:-2], self._features)
        return project(self, "project_out", values) if has_projections(self) else values

    def _indices_of(self, levels: Levels) -> Int[Array, "*indices"]:
        indices = to_index(levels, self.radices())
        return indices[..., 0] if self.num_codebooks == 1 else indices

    def _mean(self, values: Float[Array, "*tokens"], mask: TokenMask) -> Float[Array, ""]:
        return masked_mean(values, mask, mapped_axis(self))

    def _statistics(self, choice: Choice, mask: TokenMask) -> dict[str, Float[Array, ""]]:
        indices = to_index(choice.levels, self.radices())
        found = [
            index_statistics(indices[..., c], self.num_codes, None if mask is None else mask[..., c], mapped_axis(self))
            for c in range(self.num_codebooks)
        ]
        return jax.tree.map(lambda *values: sum(values) / len(values), *found)
