"""Random arrays for tests, and float64 NumPy beside them."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0, scale=1.0):
    """Of NumPy, in float32."""
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def gaussian(*shape, seed=0):
    """Of JAX, in float32."""
    return jnp.asarray(normal(*shape, seed=seed))


def half_masked(tokens, dim):
    """Tokens of which every second is NaN and masked, the mask, and the others alone."""
    z = gaussian(tokens, dim)
    mask = jnp.arange(tokens) % 2 == 0
    return jnp.where(mask[:, None], z, jnp.nan), mask, z[::2]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pulled_back(function, cotangent, *primals):
    """Value of a function, and the cotangent pulled back to each argument."""
    value, pull = jax.vjp(function, *primals)
    return value, pull(cotangent)


def central_difference(function, x, step=1e-6):
    """Gradient of a float64 function by finite differences."""
    moves = [step * one.reshape(x.shape) for one in np.eye(x.size)]
    return np.reshape([(function(x + move) - function(x - move)) / (2 * step) for move in moves], x.shape)


def rotation_matrix(u, v):
    """The rotation of unit vectors u to v by Rodrigues' formula: exp of the generator of their plane."""
    generator = v[..., :, None] * u[..., None, :] - u[..., :, None] * v[..., None, :]
    cosine = np.sum(u * v, -1)[..., None, None]
    return np.eye(u.shape[-1]) + generator + generator @ generator / (1 + cosine)
