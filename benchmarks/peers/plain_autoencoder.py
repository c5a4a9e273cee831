"""The study's autoencoder as a plain Flax port writes it: nn.Conv, nn.ConvTranspose and a one-hot quantizer."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(x + nn.Conv(x.shape[-1], (3, 3))(nn.relu(nn.Conv(x.shape[-1], (3, 3))(x))))


class _Autoencoder(nn.Module):
    num_codes: int = 1024
    dim: int = 256

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(self.dim // 2, (4, 4), strides=2, padding=1)(images))
        x = nn.relu(nn.Conv(self.dim, (4, 4), strides=2, padding=1)(x))
        z = _Block()(_Block()(x))
        codes = self.param("codes", nn.initializers.normal(), (self.num_codes, self.dim))
        flat = z.reshape(-1, self.dim)
        distances = jnp.sum(flat**2, -1, keepdims=True) - 2 * flat @ codes.T + jnp.sum(codes**2, -1)[None]
        quantized = (jax.nn.one_hot(jnp.argmin(distances, -1), self.num_codes) @ codes).reshape(z.shape)
        constant = jax.lax.stop_gradient
        loss = jnp.mean((constant(z) - quantized) ** 2) + 0.25 * jnp.mean((z - constant(quantized)) ** 2)
        x = _Block()(_Block()(z + constant(quantized - z)))
        x = nn.relu(nn.ConvTranspose(self.dim // 2, (4, 4), strides=(2, 2))(x))
        return nn.tanh(nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x)), loss


def plain_train_step(images: np.ndarray, learning_rate: float) -> Callable[[], None]:
    """One step of Adam.

    Args:
      images: uint8 ``[batch, height, width, 3]``.
      learning_rate: Of Adam.

    Returns:
      A function that returns when the step is done.
    """
    model, optimizer = _Autoencoder(), optax.adam(learning_rate)
    batch = jnp.asarray(images)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *images.shape[1:])))["params"]

    @jax.jit
    def step(params, opt_state, batch):
        pixels = batch / 127.5 - 1

        def loss(params):
            reconstruction, extra = model.apply({"params": params}, pixels)
            return jnp.mean((reconstruction - pixels) ** 2) + extra

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    held = [(params, optimizer.init(params))]

    def run() -> None:
        held[0] = jax.block_until_ready(step(*held[0], batch))

    return run
