"""Drawing of tokens beside the loop in PyTorch that the benchmark compares it with."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.torch_transformer import torch_transformer
from vqjax.models.sampling import sample_causal
from vqjax.models.transformer import CausalTransformer


def test_the_likeliest_tokens_are_those_of_pytorch():
    import torch

    model = CausalTransformer(num_codes=19, grid=(3, 4), num_classes=5, dim=32, depth=2, heads=4)
    classes = jnp.array([0, 4, 2, 5])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((4, 12), jnp.int32), classes)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    variables = jax.tree.unflatten(tree, leaves)

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
