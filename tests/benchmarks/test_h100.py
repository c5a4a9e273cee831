"""Training steps compile for an H100, without numbers of 64 bits and without a word to the host."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks.h100 import compile_for_h100
from vqjax import FSQ, LFQ, SimVQ, VectorQuantizer

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

    program = compile_for_h100(step, jax.eval_shape(vq.init, keys, z), z)
    text = program.as_text()
    assert not re.search(r"\b(f64|s64)\[\d", text)
    assert not _TO_THE_HOST.search(text)
