"""A batch in parts gives what the whole batch gives, and needs less memory."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from vqjax import VectorQuantizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder

pytestmark = pytest.mark.full

MODEL = VQVAE(SonnetEncoder(width=16, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=16))
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


class StatefulDecoder(nn.Module):
    """Running statistics, dropout and power iteration: three kinds of variables besides parameters."""

    @nn.compact
    def __call__(self, codes, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(codes))
        x = nn.SpectralNorm(nn.Dense(8))(nn.relu(x), update_stats=train)
        return nn.Dropout(0.5, deterministic=not train)(SonnetDecoder(width=8)(x))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_decoder_with_state_of_its_own_trains_and_evaluates(microbatches):
    model = MODEL.clone(decoder=StatefulDecoder())
    variables = model.init(jax.random.key(1), IMAGES)
    assert variables.keys() == {"params", "codebook", "batch_stats"}
    rngs = {"quantizer": jax.random.key(2), "dropout": jax.random.key(3)}

    @jax.jit
    def train(variables):
        step = model.clone(microbatches=microbatches)
        return step.apply(variables, IMAGES, train=True, mutable=["codebook", "batch_stats"], rngs=rngs)

    output, updates = train(variables)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], updates["batch_stats"])
    assert moved["decoder"]["BatchNorm_0"] == {"mean": True, "var": True}
    assert all(jax.tree.leaves(moved))
    # Half of the pixels are dropped, others in every part.
    dropped = np.asarray(output.reconstruction == 0)
    assert 0.45 < dropped.mean() < 0.55
    assert (dropped[0] != dropped[1]).any()
    evaluated = model.apply(variables | updates, IMAGES, train=False)
    assert (evaluated.reconstruction == 0).mean() < 0.01
    chex.assert_trees_all_equal(evaluated, model.apply(variables | updates, IMAGES, train=False))
