"""The kernel for Hopper GPUs: simulated, against float64; and lowered for such a GPU without one."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from helpers.searching import CODES, DATA, DIM, TOKENS, data, equal_codes, wrong
from vqjax import VectorQuantizer
from vqjax.functional import hopper, nearest_codes, search
from vqjax.functional.search import centered

pytestmark = pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"), reason="the oldest supported jax cannot simulate kernels for GPUs"
)


def found(z, codes):
    return np.asarray(hopper.nearest(*centered(jnp.asarray(z), jnp.asarray(codes)), interpret=True))


@pytest.mark.parametrize("name", DATA)
def test_every_code_is_the_nearest(name):
    z, codes = data(name)
    assert wrong(z, codes, found(z, codes)) == 0


def test_products_of_bfloat16_alone_would_be_wrong(monkeypatch):
    monkeypatch.setattr(hopper, "_PARTS_OF_TOKENS", (0,))
    monkeypatch.setattr(hopper, "_PARTS_OF_CODES", (0,))
    z, codes = data("gaussian")
    assert wrong(z, codes, found(z, codes)) > 0


def test_ties_go_to_the_lowest_index_and_nan_to_some_code():
    z = np.zeros((TOKENS, DIM), np.float32)
    z[7] = np.nan
    indices = hopper.nearest(jnp.asarray(z), jnp.asarray(equal_codes()), interpret=True)
    assert np.all(np.delete(indices, 7) == 3)
    assert 0 <= indices[7] < CODES


def test_no_token_has_no_code():
    assert hopper.nearest(jnp.zeros((0, DIM)), jnp.ones((CODES, DIM)), interpret=True).shape == (0,)


@pytest.fixture
def on_a_hopper(monkeypatch):
    """As if this process had one such GPU and nothing else."""
    monkeypatch.setattr(search, "_alone_on_a_hopper", lambda: True)


def program(function, *shapes):
    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    mesh = AbstractMesh((1,), ("one",), axis_types=(AxisType.Auto,), abstract_device=device)
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    # What was traced for other devices is kept.
    jax.clear_caches()
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_a_hopper_gpu_alone_searches_with_it(on_a_hopper):
    assert "mosaic_gpu" in program(nearest_codes, (2, TOKENS, DIM), (CODES, DIM))


def test_64_bits_are_no_matter_to_it(on_a_hopper):
    with jax.enable_x64(True):
        assert "mosaic_gpu" in program(nearest_codes, (TOKENS, DIM), (CODES, DIM))


def test_a_training_step_differentiates_past_it(on_a_hopper):
    vq = VectorQuantizer(num_codes=CODES)

    def step(z):
        def loss(z):
            out, _ = vq.init_with_output(jax.random.key(0), z, train=True)
            return out.loss + jnp.sum(out.quantized)

        return jax.grad(loss)(z)

    assert "mosaic_gpu" in program(step, (TOKENS, DIM))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_several_searches_at_once_do_without_it(on_a_hopper, axes):
    shapes = [(3, *shape)[axis is None :] for axis, shape in zip(axes, ((TOKENS, DIM), (CODES, DIM)), strict=True)]
    text = program(jax.vmap(nearest_codes, axes), *shapes)
    assert "mosaic_gpu" not in text
    z, codes = (jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in shapes)
    single = jax.vmap(lambda *arguments: search._nearest(*arguments)[1], axes)
    np.testing.assert_array_equal(jax.vmap(nearest_codes, axes)(z, codes), single(z, codes))


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability, client=SimpleNamespace())


@pytest.mark.parametrize(
    ("devices", "kernel", "tf32"),
    [
        ([gpu("9.0")], True, True),
        # XLA forgets the three products of TF32 where it divides a program.
        ([gpu("9.0")] * 2, False, False),
        ([gpu("8.0")], False, True),
        ([gpu("7.5")], False, False),
        ([gpu("gfx942")], False, False),
        ([SimpleNamespace(platform="cpu", client=SimpleNamespace())], False, False),
    ],
)
def test_the_search_is_the_fastest_that_the_gpus_can_do(monkeypatch, devices, kernel, tf32):
    monkeypatch.setattr(search, "target", lambda: devices[0])
    devices[0].client.device_count = lambda: len(devices)
    text = program(lambda z, codes: nearest_codes(z, codes), (TOKENS, DIM), (CODES, DIM))
    assert ("mosaic_gpu" in text) == kernel
    assert ("lhs_precision_type = tf32" in text) == (tf32 and not kernel)
