"""Transformers over tokens beside those in PyTorch that the benchmarks compare them with."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.torch_tokens import torch_masked
from benchmarks.peers.torch_transformer import torch_transformer
from vqjax.models.sampling import sample_causal
from vqjax.models.transformer import CausalTransformer, MaskedTransformer

SIZES = {"num_codes": 19, "grid": (3, 4), "num_classes": 5, "dim": 32, "depth": 2, "heads": 4}
CLASSES = jnp.array([0, 4, 2, 5])
TOKENS = jnp.array(np.random.default_rng(0).integers(0, 19, (4, 12)))


def random_variables(model, *inputs):
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def of_pytorch(network, *inputs):
    import torch

    with torch.inference_mode():
        tensors = [torch.from_numpy(np.array(x)) for x in inputs]
        return network(*(x if x.dtype == torch.bool else x.long() for x in tensors)).numpy()


def test_logits_of_a_whole_pass_are_those_of_pytorch():
    model = CausalTransformer(**SIZES)
    variables = random_variables(model, TOKENS, CLASSES)
    expected = of_pytorch(torch_transformer(model, variables["params"]), TOKENS, CLASSES)
    np.testing.assert_allclose(model.apply(variables, TOKENS, CLASSES, train=False), expected, rtol=1e-4, atol=1e-4)


def test_logits_of_masked_tokens_are_those_of_pytorch():
    model, masked = MaskedTransformer(**SIZES), TOKENS % 3 == 0
    variables = random_variables(model, TOKENS, masked, CLASSES)
    expected = of_pytorch(torch_masked(model, variables["params"]), TOKENS, masked, CLASSES)
    found = model.apply(variables, TOKENS, masked, CLASSES, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_likeliest_tokens_are_those_of_pytorch():
    import torch

    model, classes = CausalTransformer(**SIZES), CLASSES
    variables = random_variables(model, TOKENS, classes)

    def step(previous, position, cache):
        return model.apply(variables, previous, classes, position, cache, method="step")

    draw = jax.jit(lambda key: sample_causal(step, model.start_cache(4), key, batch=4, positions=12, top_k=1))
    with torch.inference_mode():
        network = torch_transformer(model, variables["params"])
        expected, static = (
            network.draw(torch.from_numpy(np.asarray(classes)).long(), greedy=True, static=static)
            for static in (False, True)
        )
    np.testing.assert_array_equal(expected, static)
    np.testing.assert_array_equal(draw(jax.random.key(0)), expected.numpy())
    assert len(np.unique(expected)) > 5
