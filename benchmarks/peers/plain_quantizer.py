"""The textbook quantizer in plain JAX: all distances at once, and one-hot products for the statistics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def plain_quantizer(z: np.ndarray, slope: np.ndarray, num_codes: int) -> Callable[[], None]:
    """One training step: straight-through, moving averages of counts and sums.

    Args:
      z: Tokens ``[tokens, dim]``, float32.
      slope: Gradient of the task with respect to the codes.
      num_codes: Size of the codebook.

    Returns:
      A function that returns when the step is done.
    """
    codes = jax.random.normal(jax.random.key(0), (num_codes, z.shape[-1]))
    state = (codes, jnp.ones(num_codes), codes)

    @jax.jit
    def step(state, z, slope):
        codes, counts, sums = state

        def loss(z):
            distances = jnp.sum(z**2, -1, keepdims=True) - 2 * z @ codes.T + jnp.sum(codes**2, -1)[None]
            one_hot = jax.nn.one_hot(jnp.argmin(distances, -1), num_codes)
            quantized = one_hot @ codes
            commitment = jnp.mean((z - jax.lax.stop_gradient(quantized)) ** 2)
            crossed = z + jax.lax.stop_gradient(quantized - z)
            return jnp.sum(crossed * slope) + 0.25 * commitment, jax.lax.stop_gradient(one_hot)

        gradient, one_hot = jax.grad(loss, has_aux=True)(z)
        new_counts = 0.99 * counts + 0.01 * one_hot.sum(0)
        new_sums = 0.99 * sums + 0.01 * one_hot.T @ z
        return (new_sums / jnp.maximum(new_counts, 1e-5)[:, None], new_counts, new_sums), gradient

    held = [state]
    tokens, weights = jnp.asarray(z), jnp.asarray(slope)

    def run() -> None:
        held[0], gradient = jax.block_until_ready(step(held[0], tokens, weights))
        del gradient

    return run
