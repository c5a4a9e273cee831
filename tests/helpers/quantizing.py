"""A small quantizer for the tests of the quantizers, and its lookup in float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

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


def unit(x):
    """In float64."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def codes_of(vq, variables):
    return np.asarray(vq.apply(variables, jnp.arange(CODES), method="decode"))


def nearest(z, codes):
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    return np.argmin(np.sum((z[..., None, :] - codes) ** 2, -1), axis=-1)


def check_eight_devices(vq, variables, z, mapped):
    """Compares one device with eight that share the tokens, under ``jit`` or over a mapped axis."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    # The first device holds nothing.
    mask = jnp.arange(len(z)) > 5

    def step(vq, average, variables, z, mask):
        out = vq.apply(variables, z, mask, train=False)
        return average((out.loss, out.metrics)), (out.indices, out.quantized)

    expected = jax.jit(lambda *a: step(vq, lambda x: x, *a))(variables, z, mask)
    if mapped:
        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": (P(), P("data"))}
        average = lambda x: jax.lax.pmean(x, "data")  # noqa: E731
        of_part = functools.partial(step, vq.clone(axis_name="data"), average)
        actual = jax.jit(jax.shard_map(of_part, mesh=mesh, **specs))(variables, z, mask)
    else:
        whole, split = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
        placed = jax.device_put(z, split), jax.device_put(mask, split)
        actual = jax.jit(lambda *a: step(vq, lambda x: x, *a))(jax.device_put(variables, whole), *placed)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)
