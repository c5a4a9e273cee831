"""IBQ: a codebook of parameters that all learn from every token."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators.index_backpropagation import index_backpropagation, largest_inner_product
from vqjax.functional.codebook import assign
from vqjax.functional.metrics import geometry_statistics, masked_mean, perplexity, usage
from vqjax.functional.regularizers import Regularizer
from vqjax.quantizers.base import (
    QuantizerOutput,
    decode_valid,
    flatten,
    mapped_axis,
    minus_one_where_masked,
    zero_where_masked,
)
from vqjax.quantizers.validation import check_input, is_count, is_number, is_weight, requirement

Vectors = Float[Array, "*batch dim"]
Mask = Bool[Array, "*batch"] | None


class IBQ(nn.Module):
    r"""Index backpropagation quantization: the gradient of the choice reaches the encoder and all codes.

    The code :math:`q = e_i,\ i = \arg\max_k z \cdot e_k` is the output bit for bit; its gradient is that of
    :func:`vqjax.estimators.index_backpropagation.index_backpropagation`. The loss is the authors' double
    quantization loss

    .. math:: w\,|z - q|^2 + \beta\,|z - \mathrm{sg}(e_i)|^2 + \alpha\,|\mathrm{sg}(z) - e_i|^2

    averaged over unmasked tokens and dimensions. All three terms have the same value. The first one's gradient passes
    through the choice as well; in the second and third :math:`e_i` is the plain code. The authors' code has
    :math:`w = \beta = 1` and :math:`\alpha = 0.25` (the smaller weight is that of the codes, as in VQGAN), and adds
    ``EntropyPenalty(0.05)`` for 16,384 codes of 256 features.

    Variables:
      ``params["codes"]``, float32 ``[num_codes, dim]``; moved by the optimizer alone. ``train`` changes nothing.

    Attributes:
      num_codes: Size of the codebook.
      temperature: Of the softmax whose gradient is taken, above 0.
      quantization_weight: :math:`w`.
      commitment_weight: :math:`\beta`.
      codebook_weight: :math:`\alpha`.
      codebook_init: Initializer of the codes; the authors' is standard normal.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Not needed, and
        wrong, under plain ``jit``. Average gradients over the axis.
      regularizers: Added to the loss, see :mod:`vqjax.functional.regularizers`; their similarity is the inner product.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import IBQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> ibq = IBQ(num_codes=16)
      >>> variables = ibq.init(jax.random.key(1), z)
      >>> out = ibq.apply(variables, z)
      >>> out.quantized.shape, out.indices.shape
      ((2, 8, 8, 4), (2, 8, 8))
      >>> vectors = ibq.apply(variables, out.indices, method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Shi et al., ICCV 2025 (arXiv 2412.02692), Section 3.2, and the authors' code (TencentARC/SEED-Voken).
    """

    num_codes: int
    temperature: float = 1.0
    quantization_weight: float = 1.0
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    codebook_init: Callable = nn.initializers.normal(1.0)
    axis_name: str | None = None
    regularizers: tuple[Regularizer, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require = requirement(self)
        require(is_count(self.num_codes) and self.num_codes < 2**31, "num_codes", "use a whole number of at least 1.")
        of_softmax = is_number(self.temperature) and 0 < self.temperature < math.inf
        require(of_softmax, "temperature", "use a finite number above 0, such as 1.0.")
        for name in ("quantization_weight", "commitment_weight", "codebook_weight"):
            require(is_weight(getattr(self, name)), name, "use a finite number of at least 0, such as 0.25.")

    @property
    def num_codebooks(self) -> int:
        """Of a token: one."""
        return 1

    @nn.compact
    def __call__(self, z: Vectors, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Quantizes vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses or statistics, receive no gradient, and
            come back as zero vectors with index -1.
          train: Changes nothing: there is neither noise nor state.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``quantization_loss``,
          ``commitment_loss`` and ``codebook_loss`` (unweighted; equal in value, different in gradient),
          ``perplexity`` and ``usage`` of this batch, ``norm_ratio`` (mean |q|/|z|), ``angle`` (mean, radians), and
          each regularizer by its name.

        Raises:
          UserError: A ``z`` or ``mask`` of the wrong kind.
        """
        check_input(z, mask)
        if self.is_initializing():
            self.param("codes", self.codebook_init, (self.num_codes, z.shape[-1]), jnp.float32)
        codes = self._codes(z.shape[-1])
        vectors = zero_where_masked(z, mask).astype(jnp.float32)
        quantized, indices = index_backpropagation(vectors, codes, temperature=float(self.temperature))
        loss, metrics = self._losses(vectors, quantized, indices, mask)
        metrics |= geometry_statistics(vectors, quantized, mask, mapped_axis(self))
        quantized = zero_where_masked(quantized.astype(z.dtype), mask)
        indices = minus_one_where_masked(indices, mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None) -> Int[Array, "*batch"]:
        """Returns the index of each vector's code.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices in ``[0, num_codes)``.
        """
        check_input(z, mask)
        codes = self._codes(z.shape[-1])
        return minus_one_where_masked(largest_inner_product(zero_where_masked(z, mask), codes), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*batch"]) -> Vectors:
        """Returns the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector, anything
            else NaN.

        Returns:
          Vectors in float32.
        """
        return decode_valid(lambda valid: self._codes()[valid], indices, self.num_codes)

    def bypass(self, z: Vectors) -> Vectors:
        """What an infinitely fine codebook would return: the vectors as they are.

        Args:
          z: Vectors along the last axis.

        Returns:
          The same vectors.
        """
        check_input(z, None)
        return z

    def _codes(self, features: int | None = None) -> Float[Array, "codes dim"]:
        if not self.has_variable("params", "codes"):
            raise UserError("The variables hold no codes: create them with init(key, z), and pass params on to apply.")
        codes = self.get_variable("params", "codes")
        if codes.shape != (self.num_codes, codes.shape[-1] if features is None else features):
            if features is None:
                given, then = f"num_codes={self.num_codes}", "use the settings they were made with"
            else:
                given, then = (
                    f"z has {features} features and num_codes={self.num_codes}",
                    f"pass z of {codes.shape[-1]} features",
                )
            raise UserError(
                f"{given}, but the codes in the variables have shape {codes.shape}: {then}, or initialize anew."
            )
        return codes

    def _distance(self, x: Vectors, y: Vectors, mask: Mask) -> Float[Array, ""]:
        return masked_mean(jnp.mean(jnp.square(x - y), axis=-1), mask, mapped_axis(self))

    def _losses(
        self, z: Vectors, quantized: Vectors, indices: Int[Array, "*batch"], mask: Mask
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        axis_name, codes = mapped_axis(self), self._codes()
        chosen = codes[indices]
        terms = {
            "quantization_loss": self._distance(z, quantized, mask),
            "commitment_loss": self._distance(z, jax.lax.stop_gradient(chosen), mask),
            "codebook_loss": self._distance(jax.lax.stop_gradient(z), chosen, mask),
        }
        weights = [self.quantization_weight, self.commitment_weight, self.codebook_weight]
        tokens, token_mask = flatten(z, mask)
        counts = assign(tokens, indices.reshape(-1), self.num_codes, token_mask).counts
        counts = counts if axis_name is None else jax.lax.psum(counts, axis_name)
        for regularizer in self.regularizers:
            # "cosine" is the plain inner product of what is given.
            settings = {"axis_name": axis_name, "distance": "cosine"}
            terms[regularizer.name] = regularizer(tokens, codes, counts, token_mask, **settings)
            weights.append(regularizer.weight)
        loss = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        statistics = {"perplexity": perplexity(counts), "usage": usage(counts)}
        return loss, {"quantization_error": terms["quantization_loss"]} | terms | statistics
