"""The kernel for Hopper GPUs: simulated, against float64; and lowered for such a GPU without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from helpers.searching import CODES, DATA, DIM, TOKENS, data, equal_codes, wrong
from vqjax.errors import UserError
from vqjax.functional import hopper

pytestmark = pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"), reason="the oldest supported jax cannot simulate kernels for GPUs"
)


def search(z, codes):
    return np.asarray(hopper.nearest_codes(jnp.asarray(z), jnp.asarray(codes), interpret=True))


@pytest.mark.parametrize("name", DATA)
def test_every_code_is_the_nearest(name):
    z, codes = data(name)
    assert wrong(z, codes, search(z, codes)) == 0


def test_products_of_bfloat16_alone_would_be_wrong(monkeypatch):
    monkeypatch.setattr(hopper, "_PARTS_OF_TOKENS", (0,))
    monkeypatch.setattr(hopper, "_PARTS_OF_CODES", (0,))
    z, codes = data("gaussian")
    assert wrong(z, codes, search(z, codes)) > 0


def test_ties_go_to_the_lowest_index_and_nan_to_some_code():
    z = np.zeros((TOKENS, DIM), np.float32)
    z[7] = np.nan
    found = hopper.nearest_codes(jnp.asarray(z), jnp.asarray(equal_codes()), interpret=True)
    assert np.all(np.delete(found, 7) == 3)
    assert 0 <= found[7] < CODES


def test_no_token_has_no_code():
    assert hopper.nearest_codes(jnp.zeros((0, DIM)), jnp.ones((CODES, DIM)), interpret=True).shape == (0,)


def test_it_lowers_for_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(hopper, "_check_device", lambda: None)
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    mesh = AbstractMesh((1,), ("one",), axis_types=(AxisType.Auto,), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(hopper.nearest_codes).trace(jnp.ones((TOKENS, DIM)), jnp.ones((CODES, DIM)))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in program


def test_another_device_is_refused():
    with pytest.raises(UserError, match=r"default device must be a GPU of .* 9.0, .* use .*nearest_codes"):
        hopper.nearest_codes(jnp.ones((4, DIM)), jnp.ones((CODES, DIM)))
