"""Training steps compile for an H100, without numbers of 64 bits and without a word to the host."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.h100 import compile_for_h100
from helpers import recipes
from vqjax import FSQ, LFQ, SimVQ, VectorQuantizer
from vqjax.data.arrays import ArrayDataset
from vqjax.functional import nearest_codes, search
from vqjax.training.build import build_task
from vqjax.training.config import base_config, validate

pytestmark = pytest.mark.full
QUANTIZERS = {
    "ema": VectorQuantizer(num_codes=512),
    "cosine": VectorQuantizer(num_codes=512, distance="cosine"),
    "sim_vq": SimVQ(num_codes=512),
    "fsq": FSQ(levels=(8, 5, 5)),
    "lfq": LFQ(bits=9),
}
_TO_THE_HOST = re.compile(r"\b(infeed|outfeed|send|recv|\w*callback\w*)\(")


@pytest.fixture(autouse=True)
def _without_a_driver(monkeypatch):
    pytest.importorskip("jax_cuda13_plugin", reason="needs jax-cuda13-plugin[with-cuda], see benchmarks/h100.py")
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_training_step_of_a_quantizer(name):
    vq, z = QUANTIZERS[name], jnp.ones((2048, 9 if name == "lfq" else 3 if name == "fsq" else 32))
    keys = {"params": jax.random.key(0), "quantizer": jax.random.key(1)}

    def step(variables, z):
        def loss(z):
            out, updates = vq.apply(variables, z, train=True, mutable=["codebook"], rngs=keys)
            return out.loss + jnp.sum(out.quantized), updates

        return jax.grad(loss, has_aux=True)(z)

    check(compile_for_h100(step, jax.eval_shape(vq.init, keys, z), z))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["vqvae", "alternating", "decoder_gradient"])
def test_a_training_step_of_a_task(task, dtype):
    config = base_config()
    config.num_steps, config.task = 1, {"name": task}
    config.model = {"name": "residual", "width": 32, "dtype": dtype}
    codebook = {"name": "gradient", "weight": 0.0} if task == "alternating" else "ema"
    config.quantizer = {"name": "vq", "num_codes": 64, "codebook": codebook}
    images = np.zeros((16, 32, 32, 3), np.uint8)
    task = build_task(validate(config), ArrayDataset("black", images, image_size=32))
    state = jax.eval_shape(lambda: task.init(jax.random.key(0), {"image": jnp.asarray(images[:1])}))

    def step(state, batch):
        return task.train_step(state, batch, jax.random.fold_in(jax.random.key(0), state.step))

    check(compile_for_h100(step, state, {"image": images}))


@pytest.mark.parametrize("kernel", [False, True])
def test_a_search_in_a_large_codebook(kernel, monkeypatch):
    """XLA could not translate the split of float32 into bfloat16 for the kernel."""
    monkeypatch.setattr(search, "_alone_on_a_hopper", lambda: kernel)
    jax.clear_caches()  # what was traced before is kept, whatever it has read
    z, codes = jax.ShapeDtypeStruct((65_536, 256), jnp.float32), jax.ShapeDtypeStruct((16_384, 256), jnp.float32)
    program = compile_for_h100(nearest_codes, z, codes)
    check(program)
    assert ("mosaic_gpu" in program.as_text()) == kernel
    assert program.memory_analysis().temp_size_in_bytes < 2**29
    assert "[1024,1024]" not in program.as_text()  # the tiles of CPUs


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_training_step_of_every_recipe(name):
    vq, variables, z = recipes.create(name)
    check(compile_for_h100(functools.partial(recipes.train, vq), variables, z))


def check(program):
    text = program.as_text()
    assert not re.search(r"\b(f64|s64)\[\d", text)
    assert not _TO_THE_HOST.search(text)
