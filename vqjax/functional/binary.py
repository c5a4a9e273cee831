"""Codes made of bits, and distributions over such codes whose bits are independent."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.functional.chunks import sum_in_chunks
from vqjax.functional.entropy import entropy, global_entropy
from vqjax.functional.numbers import Number, is_positive
from vqjax.functional.sharding import with_automatic_axes

LARGEST_GROUP = 10
"""Default for the largest number of bits whose joint distribution is averaged over tokens."""

Bits = Bool[Array, "*batch bits"]
Logits = Float[Array, "*batch bits"]


def to_signs(bits: Bits, length: Number = 1.0) -> Float[Array, "*batch bits"]:
    """Return the code of bits: ``length`` where a bit is set, ``-length`` elsewhere.

    Args:
      bits: One bit per feature.
      length: Distance of each feature from zero, above 0.

    Returns:
      float32 values.

    Example:
      >>> import jax.numpy as jnp
      >>> print(to_signs(jnp.array([True, False]), 0.5))
      [ 0.5 -0.5]
    """
    return jnp.where(bits, jnp.float32(length), jnp.float32(-length))


def log_probability(logits: Logits, bits: Bits) -> Float[Array, "*batch"]:
    r"""Compute the logarithm of the probability of independent bits.

    .. math:: \log p(b) = \sum_j \log \sigma((2 b_j - 1)\, l_j)

    Args:
      logits: :math:`l_j`, the logarithm of the odds that a bit is set.
      bits: :math:`b_j`.

    Returns:
      Nats, at most 0.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(log_probability(jnp.zeros(2), jnp.array([True, False]))), 4)  # log(1/4)
      -1.3863
    """
    return jnp.sum(jax.nn.log_sigmoid(jnp.where(bits, logits, -logits)), axis=-1)


def independent_entropy(logits: Logits) -> Float[Array, "*batch"]:
    r"""Compute the entropy of independent bits, the sum of theirs.

    .. math:: H = \sum_j \log(1 + e^{-|l_j|}) + |l_j|\, \sigma(-|l_j|)

    This is the entropy over all :math:`2^\mathrm{bits}` codes, without a value for each; exact for logits of any size.

    Args:
      logits: :math:`l_j`, the logarithm of the odds that a bit is set.

    Returns:
      Nats, in ``[0, bits * log(2)]``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(independent_entropy(jnp.array([[0.0, 0.0], [0.0, 1e3]])).round(4))
      [1.3863 0.6931]
    """
    # Beyond it, all is zero, and infinity times zero is not.
    certainty = jnp.minimum(jnp.abs(logits), 1e3)
    return jnp.sum(jax.nn.softplus(-certainty) + certainty * jax.nn.sigmoid(-certainty), axis=-1)


def product_distribution(logits: Logits) -> Float[Array, "*batch codes"]:
    r"""Compute the probability of every code of independent bits.

    .. math:: p(b) = \prod_j \sigma((2 b_j - 1)\, l_j)

    Args:
      logits: :math:`l_j`, the logarithm of the odds that a bit is set.

    Returns:
      ``2**bits`` probabilities along the last axis; the first bit varies fastest.

    Example:
      >>> import jax.numpy as jnp
      >>> print(product_distribution(jnp.array([1e3, 0.0])))
      [0.  0.5 0.  0.5]
    """
    probabilities = jnp.ones_like(logits[..., :1])
    for j in range(logits.shape[-1]):
        of_bit = jax.nn.sigmoid(jnp.stack([-logits[..., j], logits[..., j]], axis=-1))
        joint = of_bit[..., :, None] * probabilities[..., None, :]
        probabilities = joint.reshape(*joint.shape[:-2], joint.shape[-2] * joint.shape[-1])
    return probabilities


def group_sizes(bits: int, largest: int) -> list[int]:
    """Split bits into the fewest groups of at most ``largest``, as equal as possible.

    Example:
      >>> group_sizes(18, 10), group_sizes(13, 5)
      ([9, 9], [5, 4, 4])
    """
    count = -(-bits // largest)
    return [bits // count + (number < bits % count) for number in range(count)]


@with_automatic_axes()
def bit_entropies(
    logits: Logits,
    *,
    bits_per_group: int = LARGEST_GROUP,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
    smallest_probability: Number | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Compute the entropies of tokens' distributions over the codes of independent bits, over the global batch.

    .. math:: \frac1N\sum_n H(p_n)\ \ \text{and}\ \ \sum_g H\Big(\frac1N\sum_n p_n^{(g)}\Big),\quad
      p_n^{(g)}(b) = \prod_{j\in g} \sigma((2 b_j - 1)\, l_{nj})

    The first is exact for any number of bits. The second is exact within a group of bits, whose mean distribution is
    computed; over several groups it is an upper bound, attained if the groups are independent over the batch. No
    [tokens, codes] matrix is made: a product distribution is the outer product of those of its halves, so its sum over
    tokens is a matrix product of the two.

    Args:
      logits: :math:`l_{nj}`, the logarithm of the odds that a bit is set.
      bits_per_group: Largest number of bits of a group, see :func:`group_sizes`; a group of :math:`g` bits costs
        :math:`2^g` multiplications per token.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split. The second value is then the global one on every device;
        the first, and the gradients of both, become global by averaging over the axis.
      smallest_probability: Floor of the probabilities in logarithms. None gives the exact entropies; 1e-5 reproduces
        vector-quantize-pytorch, where entropies are smaller by up to ``2**bits * smallest_probability / e``: 0.004
        nats for 10 bits, one nat for 18. A floor needs one group and gives up the factorization: cost grows with
        tokens times codes.

    Returns:
      Mean entropy of a token, and entropy of the mean; in nats, in ``[0, bits * log(2)]``. Both are zero if no token
      counts.

    Raises:
      UserError: ``smallest_probability`` is not above 0, or there are several groups with it.

    Example:
      >>> import jax.numpy as jnp
      >>> per_token, batch = bit_entropies(jnp.array([[50.0, -50.0], [-50.0, 50.0]]))
      >>> round(float(per_token), 4), round(float(batch), 4)
      (0.0, 0.6931)

    Source: Yu et al., 2023 (arXiv 2310.05737), eq. 4 and 5; Zhao et al., 2024 (arXiv 2406.07548) on the factors.
    """
    sizes = group_sizes(logits.shape[-1], bits_per_group)
    floored = smallest_probability is not None
    if floored and not is_positive(smallest_probability):
        raise UserError(f"smallest_probability must be above 0, or None, got {smallest_probability}.")
    if floored and len(sizes) > 1:
        raise UserError(
            f"smallest_probability must be None with {len(sizes)} groups of bits, got {smallest_probability}; use "
            f"bits_per_group={logits.shape[-1]} for one group."
        )
    tokens = logits.reshape(math.prod(logits.shape[:-1]), logits.shape[-1]).astype(jnp.float32)
    weights = jnp.ones(tokens.shape[0], jnp.float32) if mask is None else mask.reshape(-1).astype(jnp.float32)
    if mask is not None:
        tokens = jnp.where(mask.reshape(-1)[:, None], tokens, 0)
    count = jnp.sum(weights)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    count = jnp.where(count > 0, count, 1.0)

    # Distributions are computed again in the backward pass instead of being kept for it.
    @jax.checkpoint
    def sums(tokens: Float[Array, "tokens bits"], weights: Float[Array, " tokens"]):
        if floored:
            p = product_distribution(tokens)
            return jnp.sum(weights * entropy(p, smallest_probability)), jnp.matmul(
                weights, p, precision=jax.lax.Precision.HIGHEST
            )
        starts = [sum(sizes[:number]) for number in range(1, len(sizes))]
        groups = [_summed_distribution(group, weights) for group in jnp.split(tokens, starts, axis=-1)]
        return jnp.sum(weights * independent_entropy(tokens)), jnp.concatenate(groups)

    # Per token: all codes, or one of the two factors of the largest group.
    numbers_per_token = 2 ** (sizes[0] if floored else -(-sizes[0] // 2))
    entropy_sum, p_sum = sum_in_chunks(sums, tokens, weights, numbers_per_token)
    # The groups' distributions lie side by side: their entropies add up.
    entropy_of = functools.partial(entropy, smallest_probability=smallest_probability)
    return entropy_sum / count, global_entropy(entropy_of, p_sum / count, axis_name)


def _summed_distribution(
    logits: Float[Array, "tokens bits"], weights: Float[Array, " tokens"]
) -> Float[Array, " codes"]:
    """Sum the product distributions of all tokens, as a product of the distributions of their low and high bits."""
    low, high = jnp.split(logits, [-(-logits.shape[-1] // 2)], axis=-1)
    high = product_distribution(high) * weights[:, None]
    return jnp.matmul(high.T, product_distribution(low), precision=jax.lax.Precision.HIGHEST).reshape(-1)
