"""The random-projection quantizer (BEST-RQ): fixed random labels for self-supervised learning."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from vqjax.errors import UserError
from vqjax.quantizers.base import Codes, Indices, Mask, Quantizer, QuantizerOutput, Vectors, zero_where_masked
from vqjax.quantizers.boxes import read
from vqjax.quantizers.validation import check_flags, require_count
from vqjax.quantizers.vector import VectorQuantizer

_random_projections = nn.initializers.glorot_normal(in_axis=-2, out_axis=-1, batch_axis=0)
# Divided by their length, normal vectors are uniform on the sphere.
_random_directions = nn.initializers.normal(1.0)


class RandomProjectionQuantizer(Quantizer):
    r"""Quantizer that looks up random projections of the input among random unit codes; nothing is trained.

    .. math:: i_c = \arg\max_k \frac{P_c^T \hat z}{|P_c^T \hat z|} \cdot e_{ck},\quad
      \hat z = \frac{z - \mathrm{mean}(z)}{\sqrt{\mathrm{var}(z) + 10^{-5}}}

    Its indices are labels that a model learns to predict from masked speech or other features. They are targets, so
    no gradient reaches the input, and the loss is zero.

    Variables:
      All in the collection ``codebook``, float32 and fixed from ``init`` on: ``projections``
      ``[num_codebooks, dim, codebook_dim]`` (Xavier normal) and ``quantizer/codes`` ``[num_codes, codebook_dim]``, with
      several codebooks ``[num_codebooks, num_codes, codebook_dim]``. Keep them with the model: a different draw gives
      different labels.

    Attributes:
      num_codes: Size of each codebook.
      codebook_dim: Number of features of a projection and of a code.
      num_codebooks: Number of projections, each with its own codebook. With several, indices have a last axis.
      standardize: Give each vector mean 0 and variance 1 over its features first (layer normalization without
        parameters). Without it, feature means that all tokens share make most tokens choose the same codes.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Leave it None under plain
        ``jit``, where they are global without it.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

    Example:
      >>> import jax
      >>> from vqjax import RandomProjectionQuantizer
      >>> frames = jax.random.normal(jax.random.key(0), (2, 50, 80))
      >>> targets = RandomProjectionQuantizer(num_codes=64, codebook_dim=16, num_codebooks=4)
      >>> variables = jax.jit(targets.init)(jax.random.key(1), frames)
      >>> out = targets.apply(variables, frames)
      >>> out.indices.shape, out.quantized.shape, sorted(variables)
      ((2, 50, 4), (2, 50, 64), ['codebook'])

    Source: Chiu et al., ICML 2022 (arXiv 2202.01855), Section 3.
    """

    differs_in_training = False
    fits_residual = False

    num_codes: int
    codebook_dim: int
    num_codebooks: int = 1
    standardize: bool = True
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        for name in ("num_codes", "codebook_dim", "num_codebooks"):
            require_count(name, getattr(self, name))

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
          mask: True for valid tokens. The others take no part in statistics, and come back as zero vectors with
            index -1.
          train: Changes nothing.
          condition: None; the codes do not depend on one.

        Returns:
          The unit codes of all codebooks side by side, ``[..., num_codebooks * codebook_dim]`` (not the input's
          dimension), without gradient; indices; a loss of zero; and the metrics ``quantization_error``,
          ``relative_error``, ``angle`` (mean, radians), ``perplexity`` and ``usage`` of this batch (mean over
          codebooks).

        Raises:
          UserError: An input of the wrong kind.
        """
        self._check_input(z, mask, condition)
        self._is_training(train)  # Checked as everywhere, though it changes nothing.
        if self.is_initializing():
            shape = (self.num_codebooks, z.shape[-1], self.codebook_dim)
            key = self.make_rng("quantizer")
            self.variable("codebook", "projections", _random_projections, key, shape, jnp.float32)
        out = self.quantizer(jax.lax.stop_gradient(self._project_randomly(z, mask)), mask)
        names = ("quantization_error", "relative_error", "angle", "perplexity", "usage")
        metrics = {name: out.metrics[name] for name in names}
        return QuantizerOutput(out.quantized.astype(z.dtype), out.indices, jnp.zeros((), jnp.float32), metrics)

    def encode(self, z: Vectors, mask: Mask = None) -> Indices:
        """Return the indices of each vector's codes: the labels.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices in ``[0, num_codes)``; with several codebooks, along a new last axis.
        """
        self._check_input(z, mask)
        return self.quantizer.encode(self._project_randomly(z, mask), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Float[Array, "*batch features"]:
        """Return the unit codes of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Indices of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector,
            anything else NaN. With several codebooks, their axis is the last one.

        Returns:
          Vectors of ``num_codebooks * codebook_dim`` features in float32.
        """
        return self.quantizer.decode(indices)

    def code_vectors(self) -> Codes:
        return self.quantizer.code_vectors()

    def _to_code_space(self, z: Vectors) -> Float[Array, "*tokens features"]:
        return self.quantizer._to_code_space(self._project_randomly(z, None))

    def _project_randomly(self, z: Vectors, mask: Mask) -> Float[Array, "*batch features"]:
        """Return all projections side by side, in float32."""
        projections = read(self, "codebook", "projections")
        expected = (self.num_codebooks, z.shape[-1], self.codebook_dim)
        if projections is None or projections.shape != expected:
            found = "none" if projections is None else f"ones of shape {projections.shape}"
            raise UserError(
                f"The variables must hold projections of shape {expected} for z of {z.shape[-1]} features, got "
                f"{found}; create them with init(key, z), using the same settings and input, and pass all collections "
                "to apply."
            )
        z = zero_where_masked(z, mask).astype(jnp.float32)
        if self.standardize:
            # The variance about the mean: the faster mean of squares loses its digits if the mean is large.
            z = jax.nn.standardize(z, axis=-1, variance=jnp.var(z, axis=-1, keepdims=True), epsilon=1e-5)
        projected = jnp.einsum("...d,cde->...ce", z, projections, precision=jax.lax.Precision.HIGHEST)
        return projected.reshape(*z.shape[:-1], math.prod(projected.shape[-2:]))
