"""A batch in parts gives what the whole gives, and keeps less of it in memory."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import PyTree

from vqjax import VectorQuantizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder

MODEL = VQVAE(SonnetEncoder(width=16, code_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=16))
IMAGES = jax.random.uniform(jax.random.key(0), (32, 16, 16, 3), minval=-1.0)


@pytest.fixture(scope="module")
def variables() -> PyTree:
    return MODEL.init(jax.random.key(1), IMAGES)


def compiled_gradient(variables: PyTree, microbatches: int) -> jax.stages.Compiled:
    def loss(params):
        model = MODEL.clone(microbatches=microbatches)
        output, collections = model.apply(variables | {"params": params}, IMAGES, train=True, mutable=["codebook"])
        error = jnp.mean(jnp.square(output.reconstruction - IMAGES))
        return error + output.quantizer.loss, (output, collections)

    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"]).compile()


def test_values_gradients_and_codebook_are_those_of_the_whole_batch_in_less_memory(variables):
    whole, parts = (compiled_gradient(variables, microbatches) for microbatches in (1, 8))
    ((_, (output, codebook)), gradient), ((_, (output_parts, codebook_parts)), gradient_parts) = (
        compiled(variables["params"]) for compiled in (whole, parts)
    )
    chex.assert_trees_all_equal(output.quantizer.indices, output_parts.quantizer.indices)
    chex.assert_trees_all_close((output, codebook), (output_parts, codebook_parts), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(gradient, gradient_parts, rtol=1e-3, atol=1e-6)
    assert 3 * parts.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes


def test_parameters_are_the_same(variables):
    chex.assert_trees_all_equal_shapes(MODEL.clone(microbatches=4).init(jax.random.key(1), IMAGES), variables)
