"""The quantizer that is given the probabilities of bits: a sampled one-hot vector over their codes."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.bits import independent_entropy, log_probability, product_distribution
from vqjax.errors import UserError
from vqjax.estimators.jacobian import with_gradient_of
from vqjax.metrics import index_statistics, masked_mean
from vqjax.mixed_radix import to_index, to_levels
from vqjax.quantizers.checks import check_input, is_count, is_number, is_weight, requirement
from vqjax.quantizers.devices import draw_key, mapped_axis
from vqjax.quantizers.masking import decode_valid, minus_one_where_masked, zero_where_masked
from vqjax.quantizers.output import QuantizerOutput

Logits = Float[Array, "*batch bits"]
Codes = Float[Array, "*batch codes"]
Bits = Bool[Array, "*batch bits"]
Mask = Bool[Array, "*batch"] | None


class BinaryMapper(nn.Module):
    r"""Draws bits with the given logits, and returns the one-hot vector of the code that they are.

    .. math:: b_j \sim \mathrm{Bernoulli}(\sigma(l_j / T)),\quad i = \sum_j 2^j b_j

    The gradient is that of the exact distribution over codes, :math:`p(b) = \prod_j \sigma((2 b_j - 1)\, l_j)`. The
    loss is the divergence from fair coins, as far as it exceeds the free nats :math:`\kappa`:

    .. math:: \frac1N \sum_n \max(0,\ \mathrm{bits} \cdot \log 2 - H(p_n) - \kappa)

    There are no variables. Training draws from the stream ``quantizer``; ``train=False`` takes the likelier bits
    (vector-quantize-pytorch draws there too, unless told otherwise).

    Attributes:
      bits: Features of the input, 1 to 16; the output has ``2**bits`` features per token, all but one of them zero.
      free_nats: :math:`\kappa`, by default one bit.
      temperature: :math:`T` of the draw; neither the gradient nor the loss sees it.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed; each device draws its
        own bits. Not needed, and wrong, under plain ``jit``. Average gradients over the axis.

    Raises:
      UserError: An argument is out of range; at construction.

    Example:
      >>> import jax
      >>> from vqjax import BinaryMapper
      >>> logits = jax.random.normal(jax.random.key(0), (2, 16, 8))
      >>> mapper = BinaryMapper(bits=8)
      >>> out = mapper.apply({}, logits, train=True, rngs={"quantizer": jax.random.key(1)})
      >>> out.quantized.shape, out.indices.shape, bool((out.quantized.argmax(-1) == out.indices).all())
      ((2, 16, 256), (2, 16), True)
      >>> mapper.apply({}, logits, out.indices, method="log_prob").shape
      (2, 16)

    Source: Fleuret, 2025 (arXiv 2510.17558).
    """

    bits: int
    free_nats: float = math.log(2)
    temperature: float = 1.0
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_arguments(self)

    @property
    def num_codes(self) -> int:
        """The number of codes, and of features of the output."""
        return 2 ** int(self.bits)

    @property
    def num_codebooks(self) -> int:
        """Of a token: one."""
        return 1

    def __call__(self, z: Logits, mask: Mask = None, train: bool = False) -> QuantizerOutput:
        """Draws a code for each token.

        Args:
          z: Logits of the bits along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in loss or statistics, receive no gradient, and come
            back as zero vectors with index -1.
          train: Draw the bits, instead of taking the likelier ones.

        Returns:
          One-hot vectors of ``2**bits`` features in the input's dtype, int32 indices, the loss, and the metrics
          ``kl`` (mean divergence from fair coins in nats, free ones included), ``perplexity`` and ``usage`` (of this
          batch).

        Raises:
          UserError: ``z`` or ``mask`` of the wrong kind; no ``quantizer`` key in training.
        """
        self._check(z, mask)
        logits = zero_where_masked(z, mask).astype(jnp.float32)
        draws = train and not self.is_initializing()
        indices = self._indices_of(self._drawn(logits) if draws else logits > 0)
        one_hot = jax.nn.one_hot(indices, self.num_codes, dtype=jnp.float32)
        quantized = with_gradient_of(one_hot, product_distribution(logits)).astype(z.dtype)
        kl = self.bits * math.log(2) - independent_entropy(logits)
        loss = masked_mean(jax.nn.relu(kl - self.free_nats), mask, mapped_axis(self))
        statistics = index_statistics(indices, self.num_codes, mask, mapped_axis(self))
        metrics = {"kl": masked_mean(kl, mask, mapped_axis(self))} | statistics
        return QuantizerOutput(
            zero_where_masked(quantized, mask),
            minus_one_where_masked(indices, mask),
            loss,
            jax.lax.stop_gradient(metrics),
        )

    def encode(self, z: Logits, mask: Mask = None) -> Int[Array, "*batch"]:
        """Returns the index of the likeliest code.

        Args:
          z: Logits of the bits along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices.
        """
        self._check(z, mask)
        return minus_one_where_masked(self._indices_of(z > 0), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*batch"]) -> Codes:
        """Returns the one-hot vectors of indices.

        Args:
          indices: Of any integer dtype, in ``[0, 2**bits)``; -1 (a masked token) becomes the zero vector, anything
            else NaN.

        Returns:
          float32 vectors of ``2**bits`` features.
        """
        return decode_valid(partial(jax.nn.one_hot, num_classes=self.num_codes), indices, self.num_codes)

    def log_prob(self, z: Logits, indices: Integer[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch"]:
        """Logarithm of the probability of a code, differentiable in the logits.

        Args:
          z: Logits of the bits along the last axis.
          indices: One per token, in ``[0, 2**bits)``; -1 (a masked token) gets 0, anything else NaN.

        Returns:
          float32 nats.
        """
        self._check(z, None)
        logits = z.astype(jnp.float32)

        def found(indices: Int[Array, "*batch"]) -> Float[Array, "*batch 1"]:
            return log_probability(logits, to_levels(indices, (2,) * self.bits) > 0)[..., None]

        return decode_valid(found, indices, self.num_codes)[..., 0]

    def unquantized(self, z: Logits) -> Codes:
        """The distribution over codes that training draws from at ``temperature=1``.

        Args:
          z: Logits of the bits along the last axis.

        Returns:
          ``2**bits`` probabilities per token in the input's dtype, with the plain gradient.
        """
        self._check(z, None)
        return product_distribution(z.astype(jnp.float32)).astype(z.dtype)

    def _drawn(self, logits: Logits) -> Bits:
        return jax.random.bernoulli(draw_key(self, "train=True"), jax.nn.sigmoid(logits / self.temperature))

    def _indices_of(self, bits: Bits) -> Int[Array, "*batch"]:
        return to_index(bits.astype(jnp.int32), (2,) * self.bits)

    def _check(self, z: Logits, mask: Mask) -> None:
        check_input(z, mask)
        if z.shape[-1] != self.bits:
            raise UserError(f"z has {z.shape[-1]} features, but bits={self.bits}: pass one logit per bit.")


def _check_arguments(mapper: BinaryMapper) -> None:
    require = requirement(mapper)
    require(
        is_count(mapper.bits) and mapper.bits <= 16,
        "bits",
        "use a whole number in [1, 16]: the output has 2**bits features per token, 256 KiB at 16 bits. For more "
        "codes use LFQ or BSQ, whose output has one feature per bit.",
    )
    require(is_weight(mapper.free_nats), "free_nats", "use a finite number of at least 0, such as 0.69 for one bit.")
    require(
        is_number(mapper.temperature) and 0 < mapper.temperature < math.inf,
        "temperature",
        "use a finite number above 0.",
    )
