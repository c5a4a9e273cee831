"""Models on meshes with explicit axes: a batch that is divided over devices gives what it gives on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers.arrays import gaussian
from vqjax.models.dinov2 import DINOv2
from vqjax.models.mingpt import MinGPT
from vqjax.models.next_scale import NextScaleTransformer
from vqjax.models.registry import build_model
from vqjax.models.resnet import ResNet
from vqjax.models.transformer import CausalTransformer, MaskedTransformer

pytestmark = pytest.mark.full

TOKENS = np.arange(16, dtype=np.int32).reshape(4, 4) % 8
CLASSES = np.arange(4, dtype=np.int32) % 3
MAGVIT = {"name": "magvit", "channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "latent_dim": 4}
VQ, LFQ = {"name": "vq", "num_codes": 16}, {"name": "lfq", "bits": 4}
IMAGES = gaussian(4, 8, 8, 3)
MODELS = {
    "sonnet": (build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, VQ), (IMAGES,)),
    "maskgit": (build_model(MAGVIT | {"variant": "maskgit"}, VQ), (IMAGES,)),
    "open_magvit2": (build_model(MAGVIT | {"variant": "open_magvit2"}, LFQ), (IMAGES,)),
    "causal": (CausalTransformer(8, (2, 2), 3, dim=16, depth=1, heads=2), (TOKENS, CLASSES)),
    "masked": (MaskedTransformer(8, (2, 2), 3, dim=16, depth=1, heads=2), (TOKENS, TOKENS > 4, CLASSES)),
    "mingpt": (MinGPT(8, 4, 16, 1, 2), (TOKENS,)),
    "next_scale": (NextScaleTransformer(8, (1, 2), 4, 3, dim=16, depth=1, heads=2), (gaussian(4, 4, 4), CLASSES)),
    "resnet": (ResNet((8, 16)), (IMAGES,)),
    "dinov2": (DINOv2(64, 1), (gaussian(4, 224, 224, 3),)),
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])


@pytest.mark.parametrize("name", MODELS)
def test_a_divided_batch_is_the_same_batch(name, mesh):
    """Bug: transformers, ResNet and Open-MAGVIT2 failed in gathers and reshapes of divided arrays."""
    model, inputs = MODELS[name]
    keys = {"params": jax.random.key(0), "quantizer": jax.random.key(1)}
    options = {} if name in ("mingpt", "resnet", "dinov2") else {"train": False}
    variables = jax.jit(lambda *x: model.init(keys, *x))(*inputs)
    apply = jax.jit(lambda v, *x: model.apply(v, *x, **options))
    expected = apply(variables, *map(jnp.asarray, inputs))
    divided = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in inputs]
    output = apply(variables, *divided)
    for found, wanted in zip(*map(jax.tree.leaves, (output, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    largest = max(jax.tree.leaves(output), key=jnp.size)
    assert jax.typeof(largest).sharding.spec[0] == "data"
    with jax.set_mesh(mesh):
        of_whole = apply(variables, *map(jnp.asarray, inputs))
    for found, wanted in zip(*map(jax.tree.leaves, (of_whole, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_steps_of_divided_images_are_those_of_whole_ones(mesh):
    model = CausalTransformer(8, (2, 2), 3, dim=16, depth=1, heads=2)
    variables = model.init(jax.random.key(0), jnp.asarray(TOKENS))
    step = jax.jit(lambda v, *x: model.apply(v, *x, method="step"))
    cache = model.apply(variables, 4, method="start_cache")
    logits, after = step(variables, jnp.asarray(TOKENS[:, 0]), jnp.asarray(CLASSES), 0, cache)
    divided = jax.device_put((TOKENS[:, 0], CLASSES), NamedSharding(mesh, PartitionSpec("data")))
    found, also = step(variables, *divided, 0, jax.device_put(cache, NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), also, after)
