"""The kernel for Hopper GPUs: simulated, against float64; and lowered for such a GPU without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from helpers.searching import CODES, DATA, DIM, TOKENS, data, equal_codes, wrong
from vqjax import VectorQuantizer
from vqjax.errors import UserError
from vqjax.functional import hopper as hopper_search
from vqjax.functional.hopper import search_on_hopper


def search(z, codes):
    center = codes.mean(axis=0)
    return np.asarray(search_on_hopper(jnp.asarray(z - center), jnp.asarray(codes - center), interpret=True))


@pytest.mark.parametrize("name", DATA)
def test_every_code_is_the_nearest(name):
    z, codes = data(name)
    assert wrong(z, codes, search(z, codes)) == 0


def test_products_of_bfloat16_alone_would_be_wrong(monkeypatch):
    monkeypatch.setattr(hopper_search, "_PARTS_OF_TOKENS", (0,))
    monkeypatch.setattr(hopper_search, "_PARTS_OF_CODES", (0,))
    z, codes = data("gaussian")
    assert wrong(z, codes, search(z, codes)) > 0


def test_ties_go_to_the_lowest_index_and_nan_to_some_code():
    z = np.zeros((TOKENS, DIM), np.float32)
    z[7] = np.nan
    found = search_on_hopper(jnp.asarray(z), jnp.asarray(equal_codes()), interpret=True)
    assert np.all(np.delete(found, 7) == 3)
    assert 0 <= found[7] < CODES


def test_no_token_has_no_code():
    assert search_on_hopper(jnp.zeros((0, DIM)), jnp.ones((CODES, DIM)), interpret=True).shape == (0,)


def test_it_lowers_for_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(hopper_search, "check_hopper", lambda: None)
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    mesh = AbstractMesh((1,), ("one",), axis_types=(AxisType.Auto,), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(search_on_hopper).trace(jnp.ones((TOKENS, DIM)), jnp.ones((CODES, DIM)))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in program


def test_another_device_is_refused():
    z = jnp.ones((4, DIM))
    vq = VectorQuantizer(CODES, search="hopper")
    variables = VectorQuantizer(CODES).init(jax.random.key(0), z)
    with pytest.raises(UserError, match=r"search='hopper' is not possible on .* Use search='chunks'"):
        vq.apply(variables, z)
