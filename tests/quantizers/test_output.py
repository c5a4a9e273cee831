"""The output of quantizers: short as text, and a pytree that exported functions return."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import FSQ, QuantizerOutput, VectorQuantizer
from vqjax.models.vqvae import VQVAEOutput

OUTPUT = QuantizerOutput(
    quantized=jnp.zeros((2, 3, 4), jnp.bfloat16),
    indices=jnp.zeros((2, 3), jnp.int32),
    loss=jnp.array(0.123456789),
    metrics={"perplexity": jnp.array(7.0), "usage": jnp.array(0.25)},
)
TEXT = "quantized=bfloat16[2,3,4], indices=int32[2,3], loss=0.12346, metrics={perplexity: 7, usage: 0.25}"


def test_the_text_has_shapes_and_numbers():
    assert repr(OUTPUT) == f"QuantizerOutput({TEXT})"
    whole = VQVAEOutput(reconstruction=jnp.zeros((2, 8, 8, 3)), quantizer=OUTPUT)
    assert repr(whole) == f"VQVAEOutput(reconstruction=float32[2,8,8,3], quantizer=QuantizerOutput({TEXT}))"


def test_the_text_of_numbers_that_are_not_there_has_their_shapes(as_users_run_it):
    texts = []

    @jax.jit
    def traced(output):
        texts.append(repr(output))
        return output

    traced(OUTPUT)
    texts.append(repr(jax.eval_shape(traced, OUTPUT)))
    donated = jax.tree.map(jnp.copy, OUTPUT)
    jax.tree.map(lambda array: array.delete(), donated)
    texts.append(repr(donated))
    for text in texts:
        assert "loss=float32[], metrics={perplexity: float32[], usage: float32[]}" in text
    assert "loss=float32[5]" in repr(jax.vmap(lambda _: OUTPUT)(jnp.zeros(5)))
    # Trees of other things than arrays, such as shardings and axes.
    assert "quantized=0" in repr(jax.tree.map(lambda _: 0, OUTPUT))


@pytest.mark.parametrize("train", [False, True])
def test_an_exported_quantizer_is_the_same_after_serialization(train, as_users_run_it):
    vq, z = VectorQuantizer(num_codes=8), jax.random.normal(jax.random.key(0), (6, 4))
    variables = jax.jit(vq.init)(jax.random.key(1), z)

    @jax.jit
    def run(variables, z):
        return vq.apply(variables, z, train=train, mutable=["codebook"])

    serialized = jax.export.export(run)(variables, z).serialize()
    out, updates = jax.export.deserialize(serialized).call(variables, z)
    assert type(out) is QuantizerOutput
    expected, expected_updates = run(variables, z)
    for actual, wanted in zip(
        jax.tree.leaves((out, updates)), jax.tree.leaves((expected, expected_updates)), strict=True
    ):
        np.testing.assert_array_equal(actual, wanted)


def test_a_whole_model_s_output_is_serialized(as_users_run_it):
    fsq = FSQ(levels=(3, 3))

    @jax.jit
    def run(z):
        return VQVAEOutput(reconstruction=z, quantizer=fsq.apply({}, z, train=False))

    z = jnp.linspace(-1.0, 1.0, 16).reshape(2, 2, 2, 2)
    restored = jax.export.deserialize(jax.export.export(run)(z).serialize()).call(z)
    assert jax.tree.structure(restored) == jax.tree.structure(run(z))
