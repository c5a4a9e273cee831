"""A small quantizer for the tests of the quantizers, and its lookup in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import Replacement, VectorQuantizer
from vqjax.quantizers.codebooks import CODEBOOKS

CODES, DIM = 12, 4
KEY = jax.random.key(3)
codebooks = pytest.mark.parametrize("codebook", ["ema", "gradient", "frozen"])
distances = pytest.mark.parametrize("distance", ["euclidean", "cosine"])


def every_second(shape):
    return (jnp.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)


def replacing(codebook="ema", below=0.01, **options):
    """A codebook by name that replaces dead codes."""
    return CODEBOOKS[codebook](dead_code_threshold=below, replace=Replacement(below), **options)


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
