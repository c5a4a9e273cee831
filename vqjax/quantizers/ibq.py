"""Index backpropagation quantization: a codebook whose codes all learn from every token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.estimators import Estimator, index_backpropagation, keyword_names, largest_inner_product
from vqjax.functional.codebook import assign
from vqjax.functional.metrics import geometry_statistics, perplexity, usage
from vqjax.functional.numbers import Number, to_scalar
from vqjax.functional.regularizers import Regularizer
from vqjax.quantizers.base import (
    Codes,
    Mask,
    Quantizer,
    QuantizerOutput,
    Scalar,
    Vectors,
    decode_valid,
    zero_where_masked,
)
from vqjax.quantizers.boxes import read
from vqjax.quantizers.initializers import Initializer, get_initializer
from vqjax.quantizers.validation import (
    check_flags,
    require_count,
    require_positive,
    require_regularizers,
    require_weight,
)


class IBQ(Quantizer):
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
      ``params["codes"]``, float32 ``[num_codes, dim]``; updated by the optimizer alone. ``train`` changes nothing.

    Attributes:
      num_codes: Size of the codebook.
      temperature: Temperature of the softmax whose gradient is taken, above 0.
      quantization_weight: :math:`w`.
      commitment_weight: :math:`\beta`.
      codebook_weight: :math:`\alpha`.
      codebook_init: Initializer of the codes, or its name, as of :class:`VectorQuantizer`; the authors' is
        ``"normal"``.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Leave it None under plain
        ``jit``, where they are global without it. Average gradients over the axis of ``pmap``, and the loss over that
        of ``shard_map``.
      regularizers: Terms added to the loss, see :mod:`vqjax.functional.regularizers`; their similarity is the inner
        product.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

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

    differs_in_training = False

    num_codes: int
    temperature: Number = 1.0
    quantization_weight: Number = 1.0
    commitment_weight: Number = 1.0
    codebook_weight: Number = 0.25
    codebook_init: str | Initializer = "normal"
    axis_name: str | None = None
    regularizers: tuple[Regularizer, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        require_count("num_codes", self.num_codes, largest=2**31 - 1)
        require_positive("temperature", self.temperature)
        for name in ("quantization_weight", "commitment_weight", "codebook_weight"):
            require_weight(name, getattr(self, name))
        get_initializer(self.codebook_init)
        require_regularizers(self.regularizers)

    @property
    def estimator(self) -> Estimator:
        """Index backpropagation, which chooses the codes itself."""
        return index_backpropagation

    @nn.compact
    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool | None = None, condition: Vectors | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses or statistics, receive no gradient, and
            come back as zero vectors with index -1.
          train: Changes nothing: there is neither noise nor state.
          condition: None; the codes do not depend on one.

        Returns:
          Codes, indices, the weighted loss, and the metrics ``quantization_error``, ``relative_error``,
          ``quantization_loss``, ``commitment_loss`` and ``codebook_loss`` (unweighted; equal in value, different in
          gradient), ``perplexity`` and ``usage`` of this batch, ``norm_ratio`` (mean |q|/|z|), ``angle`` (mean,
          radians), ``rms_latents`` and ``rms_codes``, and each regularizer by its name.

        Raises:
          UserError: An input of the wrong kind.
        """
        self._check_input(z, mask, condition)
        self._is_training(train)  # Checked as everywhere, though it changes nothing.
        if self.is_initializing():
            self.param("codes", get_initializer(self.codebook_init), (self.num_codes, z.shape[-1]), jnp.float32)
        codes = self._codes(z.shape[-1])
        vectors = zero_where_masked(z, mask).astype(jnp.float32)
        quantized, indices = index_backpropagation(vectors, codes, temperature=to_scalar(self.temperature))
        loss, metrics = self._losses(vectors, quantized, indices, mask)
        metrics |= self._errors(vectors, quantized, mask) | geometry_statistics(
            vectors, quantized, mask, self._batch_axis
        )
        quantized = zero_where_masked(quantized.astype(z.dtype), mask)
        indices = self._mask_indices(indices, mask)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None) -> Int[Array, "*batch"]:
        """Return the index of each vector's code.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices in ``[0, num_codes)``.
        """
        self._check_input(z, mask)
        codes = self._codes(z.shape[-1])
        return self._mask_indices(largest_inner_product(zero_where_masked(z, mask), codes), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*batch"]) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Indices of any integer dtype, in ``[0, num_codes)``; -1 (a masked token) becomes the zero vector,
            anything else NaN.

        Returns:
          Vectors in float32.
        """
        return decode_valid(lambda valid: self._codes()[valid], indices, self.num_codes)

    def code_vectors(self) -> Codes:
        return self._codes()

    def _codes(self, features: int | None = None) -> Float[Array, "codes dim"]:
        """Return the codes, which must have the given number of features if there is an input."""
        codes = read(self, "params", "codes")
        found = "no codes" if codes is None else f"codes of shape {codes.shape}"
        expected = (self.num_codes, "dim" if features is None else features)
        if codes is None or codes.shape != (self.num_codes, features or codes.shape[-1]):
            raise UserError(
                f"The variables must hold codes of shape {expected}, got {found}; create them with init(key, z), using "
                "the same settings and input."
            )
        return codes

    def _losses(
        self, z: Vectors, quantized: Vectors, indices: Int[Array, "*batch"], mask: Mask
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the weighted loss, and its unweighted terms and the use of the codes."""
        codes = self._codes()
        chosen = codes[indices]
        terms = {
            "quantization_loss": self._squared_distance(z, quantized, mask),
            "commitment_loss": self._squared_distance(z, jax.lax.stop_gradient(chosen), mask),
            "codebook_loss": self._squared_distance(jax.lax.stop_gradient(z), chosen, mask),
        }
        weights = (self.quantization_weight, self.commitment_weight, self.codebook_weight)
        loss = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        tokens, token_mask = z.reshape(-1, z.shape[-1]), None if mask is None else mask.reshape(-1)
        batch = assign(tokens, indices.reshape(-1), self.num_codes, token_mask)
        counts, sums = batch if self._batch_axis is None else jax.lax.psum(batch, self._batch_axis)
        for regularizer in self.regularizers:
            # "cosine" is the plain inner product of what is given.
            settings = {"axis_name": self._batch_axis, "distance": "cosine"}
            settings |= {"sums": sums} if "sums" in keyword_names(regularizer) else {}
            terms[regularizer.name] = regularizer(tokens, codes, counts, token_mask, **settings)
            loss += regularizer.weight * terms[regularizer.name]
        return loss, terms | {"perplexity": perplexity(counts), "usage": usage(counts)}
