"""Every quantizer as a program of jax.export: for platforms that this machine lacks, and batches of any size."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from helpers.recipes import NAMES, create, evaluate, train
from vqjax import VectorQuantizer

pytestmark = pytest.mark.full


def symbolic(z, sizes="b"):
    sizes = jax.export.symbolic_shape(sizes)
    return jax.ShapeDtypeStruct((*sizes, *z.shape[len(sizes) :]), z.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_of_batches_of_any_size_for_any_platform(name):
    vq, variables, z = create(name)
    program = jax.jit(functools.partial(evaluate, vq))
    # The scales of a map follow from its size.
    batches = symbolic(z, "b") if vq.quantizes_maps else symbolic(z, "b, t")
    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(variables, batches)
    for batch in (z, z[:3]):
        chex.assert_trees_all_close(exported.call(variables, batch), program(variables, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_for_a_tpu(name):
    vq, variables, z = create(name)
    jax.export.export(jax.jit(functools.partial(train, vq)), platforms=("tpu",))(variables, z)


@pytest.mark.parametrize(("method", "mode"), [("__call__", {"train": False}), ("encode", {})])
def test_batches_of_any_size_are_searched_in_chunks(method, mode):
    vq = VectorQuantizer(num_codes=2048)
    variables = jax.jit(vq.init)(jax.random.key(0), jnp.ones((1, 4)))
    program = jax.jit(lambda variables, z: vq.apply(variables, z, method=method, **mode))
    z = jax.random.normal(jax.random.key(1), (3000, 4))
    exported = jax.export.export(program, platforms=("cpu", "cuda"))(variables, symbolic(z))
    for batch in (z, z[:1]):
        chex.assert_trees_all_close(exported.call(variables, batch), program(variables, batch), rtol=1e-5, atol=1e-6)
