"""Entropies of distributions over codes, of one batch that may be split over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.functional.numbers import Number, is_traced


def entropy(p: Float[Array, "*batch codes"], smallest_probability: Number | None = None) -> Float[Array, "*batch"]:
    r"""Compute :math:`-\sum_k p_k \log \max(p_k, \epsilon)`.

    Args:
      p: Probabilities along the last axis. Several distributions side by side add up.
      smallest_probability: :math:`\epsilon`, above 0; None for the exact entropy.

    Returns:
      Nats.

    Example:
      >>> import jax.numpy as jnp
      >>> print(entropy(jnp.array([0.5, 0.5, 0.0])).round(4))
      0.6931
    """
    # The smallest normal number keeps the logarithm and its gradient finite, and adds nothing.
    smallest = float(jnp.finfo(jnp.float32).tiny)
    maximum = jnp.maximum if is_traced(smallest_probability) else max
    floor = smallest if smallest_probability is None else maximum(smallest_probability, smallest)
    return -jnp.sum(p * jnp.log(jnp.maximum(p, floor)), axis=-1)


def global_entropy(
    entropy_of: Callable[[Array], Float[Array, ""]], mean_p: Float[Array, " codes"], axis_name: str | None
) -> Float[Array, ""]:
    """Compute the entropy of a mean distribution over all devices of a mapped axis.

    Args:
      entropy_of: Entropy of one distribution, such as :func:`entropy`.
      mean_p: Mean distribution of this device's part of the batch.
      axis_name: Mapped axis over which the batch is split; None for one device, or under ``jit``.

    Returns:
      The global value on every device. The gradient is that of this device's part: its mean over the axis is the
      gradient of the global value.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(jax.grad(lambda p: global_entropy(entropy, p, None))(jnp.array([0.5, 0.5])).round(4))
      [-0.3069 -0.3069]
    """
    global_p = jax.lax.stop_gradient(mean_p if axis_name is None else jax.lax.pmean(mean_p, axis_name))
    value, slope = jax.lax.stop_gradient(jax.value_and_grad(entropy_of)(global_p))
    # Linear in this device's part: zero in value, with the slope at the global distribution.
    return value + jnp.sum(slope * (mean_p - jax.lax.stop_gradient(mean_p)))
