"""dm-haiku's VectorQuantizerEMA: forward, backward and update of the moving averages."""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


def haiku_quantizer(z: np.ndarray, slope: np.ndarray, num_codes: int) -> Callable[[], None]:
    """One training step, straight-through.

    Args:
      z: Tokens ``[tokens, dim]``, float32.
      slope: Gradient of the task with respect to the codes.
      num_codes: Size of the codebook.

    Returns:
      A function that returns when the step is done.
    """

    def forward(z):
        module = hk.nets.VectorQuantizerEMA(z.shape[-1], num_codes, commitment_cost=0.25, decay=0.99)
        return module(z, is_training=True)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    tokens, weights = jnp.asarray(z), jnp.asarray(slope)
    params, state = transformed.init(jax.random.key(0), tokens)

    @jax.jit
    def step(state, z, slope):
        def loss(z):
            out, changed = transformed.apply(params, state, z)
            return jnp.sum(out["quantize"] * slope) + out["loss"], changed

        gradient, changed = jax.grad(loss, has_aux=True)(z)
        return changed, gradient

    held = [state]

    def run() -> None:
        held[0], gradient = jax.block_until_ready(step(held[0], tokens, weights))
        del gradient

    return run
