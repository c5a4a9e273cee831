"""Runs, tokenizers and steps of tasks within a mesh of the caller, whose axes are explicit."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import load_splits
from vqjax.training.build import build_task
from vqjax.training.config import validate
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

pytestmark = pytest.mark.full

VQGAN = {"name": "vqgan", "channels": 32, "multipliers": (1, 1), "num_res_blocks": 1, "attention_resolutions": (8,)}
TASKS = {
    "vqvae": {},
    "residual": {"model": {"name": "residual", "width": 8}},
    "vqgan": {
        "model": VQGAN | {"latent_dim": 4},
        "task": {"name": "vqgan", "discriminator": {"name": "patchgan", "channels": 4, "num_layers": 1}},
    },
    "vit_vqgan, stylegan": {
        "model": {"name": "vit_vqgan", "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32},
        "task": {"name": "vqgan", "discriminator": {"name": "stylegan", "channels": (4, 4, 4)}, "r1_weight": 1.0},
    },
}


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("mine",), devices=jax.devices()[:2])


def test_a_run_has_its_own_mesh(config, finished, mesh, tmp_path):
    expected = load_tokenizer(finished).variables
    with jax.set_mesh(mesh):
        result = train(config, tmp_path / "run", devices=jax.devices()[:1])
        assert evaluate_workdir(tmp_path / "run").metrics == pytest.approx(result.metrics, rel=1e-5)
    chex.assert_trees_all_equal(load_tokenizer(tmp_path / "run").variables, expected)


@pytest.mark.parametrize("loads_within", [True, False])
def test_a_tokenizer_follows_the_images(finished, mesh, loads_within):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    tokenizer = load_tokenizer(finished)
    expected = tokenizer.decode(tokenizer.encode(images))
    with jax.set_mesh(mesh):
        tokenizer = load_tokenizer(finished) if loads_within else tokenizer
        divided = jax.device_put(images, NamedSharding(mesh, PartitionSpec("mine")))
        actual = tokenizer.decode(tokenizer.encode(divided))
    assert actual.sharding.spec[0] == "mine"
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_step_is_that_of_one_device(config, mesh, name):
    # Adam would make a whole step of the rounding of a gradient that is zero.
    config.optimizer = {"name": "sgd", "learning_rate": 0.01}
    for group, value in TASKS[name].items():
        config[group] = value
    config = validate(config)
    splits = load_splits(config.data)
    task, key = build_task(config, splits.train), jax.random.key(0)
    batch = {"image": np.stack([splits.train[i]["image"] for i in range(8)])}
    state = task.init(key, batch)
    valid = {"valid": np.arange(8) < 7}
    expected = jax.jit(task.train_step)(state, batch, key), jax.jit(task.evaluate)(state, batch | valid)
    over = NamedSharding(mesh, PartitionSpec("mine"))
    state, (batch, valid) = (
        jax.device_put(state, NamedSharding(mesh, PartitionSpec())),
        jax.device_put((batch, valid), over),
    )
    with jax.set_mesh(mesh):
        actual = jax.jit(task.train_step)(state, batch, key), jax.jit(task.evaluate)(state, batch | valid)
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-4)
