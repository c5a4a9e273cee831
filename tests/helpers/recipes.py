"""Every quantizer with variables, and what can be done with one, as functions that are compiled once."""

import functools

import jax
import jax.numpy as jnp

from vqjax.quantizers import build
from vqjax.quantizers.recipes import RECIPES

NAMES = sorted(RECIPES)
KEY = jax.random.key(5)


@functools.cache
def create(name):
    """The quantizer of a recipe for maps of 4 x 4 vectors, its variables, and a batch of 8 maps."""
    config = dict(RECIPES[name]) | ({"scales": (1, 2, 4)} if name == "multi_scale_vq" else {})
    z = jax.random.normal(jax.random.key(0), (8, 4, 4, 8))
    vq = build(**config)
    return vq, jax.jit(vq.init)({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, z), z


def evaluate(vq, variables, z):
    """Everything that evaluation gives: the output, the indices and their vectors."""
    indices = vq.apply(variables, z, method="encode")
    return vq.apply(variables, z, train=False), indices, vq.apply(variables, indices, method="decode")


def train(vq, variables, z):
    """Loss and gradients of a training step, and the updated variables."""

    def loss(params, z):
        arguments = {"train": True, "mutable": ["codebook"], "rngs": {"quantizer": KEY}}
        out, updates = vq.apply(variables | {"params": params}, z, **arguments)
        return out.loss + jnp.mean(jnp.sin(out.quantized)), (out, updates)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables.get("params", {}), z)
