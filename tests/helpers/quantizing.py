"""What the tests of the quantizers share: a small quantizer, and float64 NumPy beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import VectorQuantizer

CODES, DIM = 12, 4
KEY = jax.random.key(3)
updates = pytest.mark.parametrize("codebook_update", ["ema", "gradient", "none"])
metrics = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def every_second(shape):
    return (jnp.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)


def create(**arguments):
    vq = VectorQuantizer(num_codes=CODES, **arguments)
    return vq, jax.jit(vq.init)(KEY, gaussian(2, 3, DIM))


@functools.partial(jax.jit, static_argnames="vq")
def train(vq, variables, z, mask=None, key=KEY):
    out, changed = vq.apply(variables, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": key})
    return out, variables | changed


def codes_of(vq, variables):
    return np.asarray(vq.apply(variables, jnp.arange(CODES), method="decode"))


def nearest(z, codes):
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    return np.argmin(np.sum((z[..., None, :] - codes) ** 2, -1), axis=-1)
