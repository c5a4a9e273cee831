"""Binary quantizers: signs as codes, looked up by no search (LFQ), on the sphere (BSQ), or drawn (binary mapper)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.estimators import straight_through
from vqjax.estimators.jacobian import with_gradient_of
from vqjax.functional.binary import (
    LARGEST_GROUP,
    bit_entropies,
    group_sizes,
    independent_entropy,
    log_probability,
    product_distribution,
    to_signs,
)
from vqjax.functional.metrics import index_statistics
from vqjax.functional.mixed_radix import to_index, to_levels
from vqjax.functional.norms import normalize
from vqjax.functional.numbers import Number, is_number, is_traced
from vqjax.functional.scalar import soft_clamp
from vqjax.quantizers.base import Quantizer, QuantizerOutput, Scalar, decode_valid, zero_where_masked
from vqjax.quantizers.grid import Features, GridCodes, GridQuantizer, Levels, TokenMask
from vqjax.quantizers.validation import (
    check_flags,
    require,
    require_count,
    require_positive,
    require_weight,
)


class LFQ(GridQuantizer):
    r"""Lookup-free quantization: every feature becomes its sign, and the signs are the bits of the index.

    .. math:: q_j = s\,\mathrm{sign}(x_j),\quad i = \sum_j 2^{b-1-j}\, [x_j > 0]

    with ``scale`` :math:`s` and :math:`b` bits (``sign(0)`` is -1; the first feature is the highest bit, as in
    vector-quantize-pytorch). The gradient passes straight through. The loss draws each token to one code and the
    batch to all of them:

    .. math:: w\,\Big(\frac1N\sum_n H(p_n) - \gamma\, H\Big(\frac1N\sum_n p_n\Big)\Big) +
      \beta\, |x - \mathrm{sg}(q)|^2,\quad p_n(c) = \mathrm{softmax}_c(2\, x_n \cdot c / \tau)

    Bits are independent given a token, so the first entropy is a sum over bits, and the second is taken per group of
    bits: memory does not grow with the number of codes (see
    :func:`vqjax.functional.binary.bit_entropies`). An input with a different number of features than
    ``num_codebooks * bits`` is projected to that number and back by two linear maps.

    ``Residual(LFQ(bits), n)`` halves ``scale`` and ``soft_clamp`` from stage to stage: its codes divide
    ``[-2 s, 2 s]`` evenly into :math:`2^n` values per feature.

    Variables:
      None, unless there are projections (in ``params``) or a rotation (``codebook["rotation"]``, never trained).

    Attributes:
      bits: Features of a code, 1 to 30; there are ``2**bits`` codes.
      num_codebooks: Number of parts into which the features are split, each with its own index (along a last axis).
      scale: :math:`s`, the distance of each feature of a code from zero.
      entropy_weight: :math:`w`.
      diversity_gamma: :math:`\gamma`.
      inverse_temperature: :math:`1/\tau`.
      commitment_weight: :math:`\beta`; the mean is over tokens and features.
      bits_per_group: Largest number of bits whose joint distribution the second entropy is taken of, up to 20; by
        default 10. Groups are as few and as equal as possible; with several, their entropies are added, which is
        exact if groups are independent over the batch, and an upper bound otherwise.
      soft_clamp: Bounds features by :math:`c \tanh(x/c)` before they are quantized; at least ``scale``.
      orthogonal_rotation: Rotate features by a fixed random rotation before they are quantized, and codes back.
      smallest_probability: 1e-5 reproduces the entropies of vector-quantize-pytorch, which bounds probabilities
        within logarithms; needs all bits in one group, and a value per token and code. None for exact entropies.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed. Leave it None under plain
        ``jit``. Average gradients over the axis of ``pmap``, and the loss over that of ``shard_map``.

    Raises:
      UserError: Raised by the constructor if an argument is out of range, or is set but would have no effect.

    Example:
      >>> import jax
      >>> from vqjax import LFQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 18))
      >>> lfq = LFQ(bits=18)
      >>> variables = lfq.init(jax.random.key(1), z)
      >>> out = lfq.apply(variables, z)
      >>> lfq.num_codes, out.quantized.shape, out.indices.shape
      (262144, (2, 8, 8, 18), (2, 8, 8))
      >>> vectors = lfq.apply(variables, lfq.apply(variables, z, method="encode"), method="decode")
      >>> bool((vectors == out.quantized).all())
      True

    Source: Yu et al., 2023 (arXiv 2310.05737), Section 3.1; the rotation is from Chee et al., 2023 (arXiv 2307.13304).
    """

    bits: int
    num_codebooks: int = 1
    scale: Number = 1.0
    entropy_weight: Number = 0.1
    diversity_gamma: Number = 1.0
    inverse_temperature: Number = 100.0
    commitment_weight: Number = 0.0
    bits_per_group: int | None = None
    soft_clamp: Number | None = None
    orthogonal_rotation: bool = False
    smallest_probability: Number | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("bits", self.bits, largest=30, advice="indices are int32")
        for name in ("scale", "inverse_temperature"):
            require_positive(name, getattr(self, name))
        for name in ("entropy_weight", "diversity_gamma", "commitment_weight"):
            require_weight(name, getattr(self, name))
        if self.bits_per_group is not None:
            advice = "a group holds a probability for each of its codes"
            require_count("bits_per_group", self.bits_per_group, largest=20, advice=advice)
        clamp, probability = self.soft_clamp, self.smallest_probability
        reached = lambda clamp: is_traced(self.scale) or self.scale <= clamp < math.inf  # noqa: E731
        in_range = clamp is None or is_number(clamp, reached)
        require(in_range, "soft_clamp", clamp, f"at least scale={self.scale}, so that codes can be reached, or None")
        in_range = probability is None or is_number(probability, lambda probability: 0 < probability < 1)
        require(in_range, "smallest_probability", probability, "in (0, 1), such as 1e-5, or None")
        one_group = len(group_sizes(self.bits, self._largest_group)) == 1
        advice = (
            f"it takes all {self.bits} bits in one group; leave it out, or set bits_per_group={self.bits} (up to 20)"
        )
        require(one_group or probability is None, "smallest_probability", probability, "None", advice)

    @property
    def length(self) -> Number:
        """The distance of each feature of a code from zero."""
        return self.scale

    def radices(self) -> tuple[int, ...]:
        return (2,) * self.bits

    def at_stage(self, stage: int) -> "LFQ":
        shrink = 2.0**-stage
        clamp = None if self.soft_clamp is None else self.soft_clamp * shrink
        return self.clone(parent=None, name=None, scale=self.scale * shrink, soft_clamp=clamp)

    def create_variables(self) -> None:
        if self.orthogonal_rotation:
            self._create_rotation()

    def preprocess(self, x: Features) -> Features:
        if self.soft_clamp is not None:
            x = soft_clamp(x, [self.soft_clamp] * self.bits)
        return self._rotate(x) if self.orthogonal_rotation else x

    def postprocess(self, values: Features) -> Features:
        return self._rotate(values, inverse=True) if self.orthogonal_rotation else values

    def quantize(self, x: Features, train: bool) -> GridCodes:
        # The first feature of a grid is the lowest digit of an index; here it is the highest.
        levels = jnp.flip((x > 0).astype(jnp.int32), axis=-1)
        return GridCodes(levels, straight_through(x, self.values(levels)))

    def values(self, levels: Levels) -> Features:
        return to_signs(jnp.flip(levels, axis=-1) > 0, self.length)

    def losses(self, x: Features, codes: Features, mask: TokenMask) -> tuple[Scalar, dict[str, Scalar]]:
        per_token, batch = self._entropies(x, mask)
        commitment = self._squared_distance(x, codes, mask)
        loss = self.entropy_weight * (per_token - self.diversity_gamma * batch) + self.commitment_weight * commitment
        return loss, {"token_entropy": per_token, "batch_entropy": batch, "commitment_loss": commitment}

    def _entropies(self, x: Features, mask: TokenMask) -> tuple[Scalar, Scalar]:
        """Return the entropies of tokens and of the batch, means over codebooks."""
        logits = 4 * self.inverse_temperature * self.length * x
        settings = {
            "bits_per_group": self._largest_group,
            "axis_name": self._batch_axis,
            "smallest_probability": self.smallest_probability,
        }
        by_codebook = [
            bit_entropies(logits[..., c, :], mask=None if mask is None else mask[..., c], **settings)
            for c in range(self.num_codebooks)
        ]
        per_token, batch = (sum(values) / self.num_codebooks for values in zip(*by_codebook, strict=True))
        return per_token, batch

    @property
    def _largest_group(self) -> int:
        return LARGEST_GROUP if self.bits_per_group is None else self.bits_per_group


class BSQ(LFQ):
    r"""Binary spherical quantization: :class:`LFQ` of features scaled to unit length, with codes of unit length.

    .. math:: u = s\, x / |x|,\quad q_j = \frac{s}{\sqrt b}\,\mathrm{sign}(u_j)

    The distance from a token to its code is bounded, by :math:`s\sqrt{2 - 2/\sqrt b}`. Loss, gradient and bits are
    those of :class:`LFQ` with :math:`u` for :math:`x`; a zero vector stays zero, is quantized to the code of index 0,
    and has no gradient.

    Attributes:
      scale: :math:`s`, the length of tokens and codes. All others are those of :class:`LFQ`.

    Example:
      >>> import jax
      >>> from vqjax import BSQ
      >>> bsq = BSQ(bits=4)
      >>> z = jax.random.normal(jax.random.key(0), (5, 4))
      >>> out = bsq.apply(bsq.init(jax.random.key(1), z), z)
      >>> print(abs(out.quantized[0]))
      [0.5 0.5 0.5 0.5]

    Source: Zhao et al., 2024 (arXiv 2406.07548).
    """

    @property
    def length(self) -> Number:
        return self.scale / math.sqrt(self.bits)

    def preprocess(self, x: Features) -> Features:
        return normalize(super().preprocess(x)) * self.scale


Logits = Float[Array, "*batch bits"]
Codes = Float[Array, "*batch codes"]
Bits = Bool[Array, "*batch bits"]
Mask = Bool[Array, "*batch"] | None


class BinaryMapper(Quantizer):
    r"""Draws bits with the given logits, and returns the one-hot vector of their code.

    .. math:: b_j \sim \mathrm{Bernoulli}(\sigma(l_j / T)),\quad i = \sum_j 2^j b_j

    The gradient is that of the exact distribution over codes, :math:`p(b) = \prod_j \sigma((2 b_j - 1)\, l_j)`. The
    loss is the divergence from fair coins, as far as it exceeds the free nats :math:`\kappa`:

    .. math:: \frac1N \sum_n \max(0,\ \mathrm{bits} \cdot \log 2 - H(p_n) - \kappa)

    There are no variables. Training draws from the stream ``quantizer``; ``train=False`` takes the likelier bits
    (vector-quantize-pytorch draws there too by default).

    Attributes:
      bits: Features of the input, 1 to 16; the output has ``2**bits`` features per token, all but one of them zero.
      free_nats: :math:`\kappa`, by default one bit.
      temperature: :math:`T` of the draw; neither the gradient nor the loss depends on it.
      axis_name: Mapped axis (``pmap``, ``shard_map``) over which batch statistics are summed; each device draws its
        own bits. Leave it None under plain ``jit``. Average gradients over the axis of ``pmap``, and the loss over
        that of ``shard_map``.

    Raises:
      UserError: Raised by the constructor if an argument is out of range.

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

    automatic_methods = (*Quantizer.automatic_methods, "log_prob")
    fits_residual = False

    bits: int
    free_nats: Number = math.log(2)
    temperature: Number = 1.0
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        advice = (
            "the output has 2**bits features per token, 256 KiB at 16 bits; for more codes use LFQ or BSQ, whose "
            "output has one feature per bit"
        )
        require_count("bits", self.bits, largest=16, advice=advice)
        require_weight("free_nats", self.free_nats)
        require_positive("temperature", self.temperature)

    @property
    def num_codes(self) -> int:
        """The number of codes, and of features of the output."""
        return 2 ** int(self.bits)

    def __call__(
        self,
        z: Logits,
        mask: Mask = None,
        train: bool | None = None,
        condition: Float[Array, "*batch features"] | None = None,
    ) -> QuantizerOutput:
        """Draw a code for each token.

        Args:
          z: Logits of the bits along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in loss or statistics, receive no gradient, and come
            back as zero vectors with index -1.
          train: Draw the bits, instead of taking the likelier ones; to be given here or at construction.
          condition: None; the codes do not depend on one.

        Returns:
          One-hot vectors of ``2**bits`` features in the input's dtype, int32 indices, the loss, and the metrics
          ``kl`` (mean divergence from fair coins in nats, free ones included), ``perplexity`` and ``usage`` (of this
          batch).

        Raises:
          UserError: An input of the wrong kind; no ``train``; no ``quantizer`` key in training.
        """
        self._check_input(z, mask, condition)
        train = self._is_training(train)
        logits = zero_where_masked(z, mask).astype(jnp.float32)
        indices = self._to_indices(self._draw(logits) if train else logits > 0)
        one_hot = jax.nn.one_hot(indices, self.num_codes, dtype=jnp.float32)
        quantized = with_gradient_of(one_hot, product_distribution(logits)).astype(z.dtype)
        kl = self.bits * math.log(2) - independent_entropy(logits)
        loss = self._mean(jax.nn.relu(kl - self.free_nats), mask)
        statistics = index_statistics(indices, self.num_codes, mask, self._batch_axis)
        metrics = jax.lax.stop_gradient({"kl": self._mean(kl, mask)} | statistics)
        return QuantizerOutput(zero_where_masked(quantized, mask), self._mask_indices(indices, mask), loss, metrics)

    def encode(self, z: Logits, mask: Mask = None) -> Int[Array, "*batch"]:
        """Return the index of the likeliest code.

        Args:
          z: Logits of the bits along the last axis.
          mask: True for valid tokens; the others get index -1.

        Returns:
          int32 indices.
        """
        self._check_input(z, mask)
        return self._mask_indices(self._to_indices(z > 0), mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*batch"]) -> Codes:
        """Return the one-hot vectors of indices.

        Args:
          indices: Indices of any integer dtype, in ``[0, 2**bits)``; -1 (a masked token) becomes the zero vector,
            anything else NaN.

        Returns:
          float32 vectors of ``2**bits`` features.
        """
        one_hot = partial(jax.nn.one_hot, num_classes=self.num_codes, dtype=jnp.float32)
        return decode_valid(one_hot, indices, self.num_codes)

    def log_prob(self, z: Logits, indices: Integer[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch"]:
        """Return the logarithm of the probability of a code, differentiable in the logits.

        Args:
          z: Logits of the bits along the last axis.
          indices: One per token, in ``[0, 2**bits)``; -1 (a masked token) gets 0, anything else NaN.

        Returns:
          float32 nats.
        """
        self._check_input(z, None)
        logits = z.astype(jnp.float32)

        def log_probability_of(valid: Int[Array, "*batch"]) -> Float[Array, "*batch 1"]:
            return log_probability(logits, to_levels(valid, (2,) * self.bits) > 0)[..., None]

        return decode_valid(log_probability_of, indices, self.num_codes)[..., 0]

    def _draw(self, logits: Logits) -> Bits:
        return jax.random.bernoulli(self._draw_key("train=True"), jax.nn.sigmoid(logits / self.temperature))

    def _to_indices(self, bits: Bits) -> Int[Array, "*batch"]:
        return to_index(bits.astype(jnp.int32), (2,) * self.bits)

    def _check_input(self, z: Logits, mask: Mask, condition: Float[Array, "*batch features"] | None = None) -> None:
        super()._check_input(z, mask, condition)
        require(z.shape[-1] == self.bits, "z", z.shape, f"one logit for each of bits={self.bits} along the last axis")
