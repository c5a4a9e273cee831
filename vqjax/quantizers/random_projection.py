"""BEST-RQ: targets for self-supervised learning, from a quantizer that is random and stays so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.quantizers.base import QuantizerOutput, zero_where_masked
from vqjax.quantizers.validation import check_flags, check_input, is_count
from vqjax.quantizers.vector import VectorQuantizer

Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None

_random_projections = nn.initializers.glorot_normal(in_axis=-2, out_axis=-1, batch_axis=0)
# Divided by their length, normal vectors are uniform on the sphere.
_random_directions = nn.initializers.normal(1.0)


class RandomProjectionQuantizer(nn.Module):
    r"""Looks up random projections of the input among random unit codes; nothing is ever trained.

    .. math:: i_c = \arg\max_k \frac{P_c^T \hat z}{|P_c^T \hat z|} \cdot e_{ck},\quad
      \hat z = \frac{z - \mathrm{mean}(z)}{\sqrt{\mathrm{var}(z) + 10^{-5}}}

    Its indices are labels that a model learns to predict from masked speech or other features. It makes targets, so
    no gradient reaches the input, and the loss is zero.

    Variables:
      All in the collection ``codebook``, float32 and fixed from ``init`` on: ``projections``
      ``[num_codebooks, dim, code_dim]`` (Xavier normal) and ``quantizer/codes`` ``[num_codes, code_dim]``, with
      several codebooks ``[num_codebooks, num_codes, code_dim]``. Keep them with the model: another draw is another
      set of labels.

    Attributes:
      num_codes: Size of each codebook.
      code_dim: Features of a projection and of a code.
      num_codebooks: Number of projections, each with a codebook of its own. With several, indices get a last axis.
      standardize: Give each vector mean 0 and variance 1 over its features first (layer normalization without
        parameters). Without it, feature means that all tokens share make most tokens choose the same codes.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Not needed, and
        wrong, under plain ``jit``.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import RandomProjectionQuantizer
      >>> frames = jax.random.normal(jax.random.key(0), (2, 50, 80))
      >>> targets = RandomProjectionQuantizer(num_codes=64, code_dim=16, num_codebooks=4)
      >>> variables = targets.init(jax.random.key(1), frames)
      >>> out = targets.apply(variables, frames)
      >>> out.indices.shape, out.quantized.shape, sorted(variables)
      ((2, 50, 4), (2, 50, 64), ['codebook'])

    Source: Chiu et al., ICML 2022 (arXiv 2202.01855), Section 3.
    """

    num_codes: int
    code_dim: int
    num_codebooks: int = 1
    standardize: bool = True
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        for name in ("num_codes", "code_dim", "num_codebooks"):
            value = getattr(self, name)
            if not is_count(value) or value >= 2**31:
                raise UserError(f"{name}={value!r} is not allowed: use a whole number of at least 1.")

    def setup(self) -> None:
        self.quantizer = VectorQuantizer(
            num_codes=self.num_codes,
            distance="cosine",
            estimator="straight_through",
            codebook="frozen",
            commitment_weight=0.0,
            codebook_init=_random_directions,
            axis_name=self.axis_name,
            heads=self.num_codebooks,
            separate_codebooks=self.num_codebooks > 1,
        )

    @nn.compact
    def __call__(self, z: Vectors, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in statistics, and come back as zero vectors with
            index -1.
          train: Changes nothing.

        Returns:
          The unit codes of all codebooks side by side, ``[..., num_codebooks * code_dim]`` (not the input's
          dimension), without gradient; indices; a loss of zero; and the metrics ``quantization_error``, ``angle``
          (mean, radians), ``perplexity`` and ``usage`` of this batch (mean over codebooks).

        Raises:
          UserError: A ``z`` or ``mask`` of the wrong kind.
        """
        check_input(z, mask)
        if self.is_initializing():
            shape = (self.num_codebooks, z.shape[-1], self.code_dim)
            self.variable("codebook", "projections", _random_projections, self.make_rng("quantizer"), shape)
        out = self.quantizer(jax.lax.stop_gradient(self._project(z, mask)), mask)
        metrics = {name: out.metrics[name] for name in ("quantization_error", "angle", "perplexity", "usage")}
        return QuantizerOutput(out.quantized.astype(z.dtype), out.indices, jnp.zeros(()), metrics)

    def encode(self, z: Vectors, mask: Mask = None) -> Int[Array, "*indices"]:
        """Returns the indices of each vector's codes: the labels.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices in ``[0, num_codes)``; with several codebooks, along a new last axis.
        """
        check_input(z, mask)
        return self.quantizer.encode(self._project(z, mask), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Float[Array, "*batch features"]:
        """Returns the unit codes of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector, anything
            else NaN. With several codebooks, their axis is the last one.

        Returns:
          Vectors of ``num_codebooks * code_dim`` features in float32.
        """
        return self.quantizer.decode(indices)

    def bypass(self, z: Vectors) -> Float[Array, "*batch features"]:
        """What infinitely fine codebooks would return: the projections, each of unit length.

        Args:
          z: Vectors along the last axis.

        Returns:
          Vectors of ``num_codebooks * code_dim`` features in the input's dtype, without gradient.
        """
        check_input(z, None)
        return self.quantizer.bypass(jax.lax.stop_gradient(self._project(z, None))).astype(z.dtype)

    def _project(self, z: Vectors, mask: Mask) -> Float[Array, "*batch features"]:
        """In float32, all projections side by side."""
        if not self.has_variable("codebook", "projections"):
            raise UserError(
                "The variables hold no projections: create them with init(key, z), and pass all collections on to "
                "apply."
            )
        projections = self.get_variable("codebook", "projections")
        if projections.shape != (self.num_codebooks, z.shape[-1], self.code_dim):
            raise UserError(
                f"z has {z.shape[-1]} features, but the projections in the variables have shape {projections.shape}: "
                f"pass z of {projections.shape[1]} features, or initialize anew."
            )
        z = zero_where_masked(z, mask).astype(jnp.float32)
        if self.standardize:
            # The variance about the mean: the faster mean of squares loses its digits where the mean is large.
            z = jax.nn.standardize(z, axis=-1, variance=jnp.var(z, axis=-1, keepdims=True), epsilon=1e-5)
        projected = jnp.einsum("...d,cde->...ce", z, projections, precision=jax.lax.Precision.HIGHEST)
        return projected.reshape(*z.shape[:-1], -1)
