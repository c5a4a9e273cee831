"""SimVQ: a VectorQuantizer with other defaults, whose codes move together."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.quantizing import CODES, DIM, KEY, check_eight_devices, every_second, gaussian, train
from vqjax import FrozenCodebook, VectorQuantizer
from vqjax.quantizers import LinearTransform
from vqjax.quantizers.vector import SimVQ

pytestmark = pytest.mark.full

SHAPE = (4, 8)
few = settings(max_examples=5)


@functools.partial(jax.jit, static_argnames="vq")
def apply(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask)


@functools.partial(jax.jit, static_argnames="vq")
def encode(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask, method="encode")


@functools.cache
def simvq():
    vq = SimVQ(CODES)
    return vq, jax.jit(vq.init)(KEY, gaussian(1, DIM))


def test_simvq_is_a_vector_quantizer_with_two_other_defaults():
    changed = {
        f.name for f in dataclasses.fields(SimVQ) if getattr(SimVQ(4), f.name) != getattr(VectorQuantizer(4), f.name)
    }
    assert changed == {"codebook", "codebook_init"}
    vq, variables = simvq()
    spelled_out = VectorQuantizer(CODES, codebook=FrozenCodebook(transform=LinearTransform()))
    z = gaussian(*SHAPE, DIM)
    chex.assert_trees_all_equal(vq.apply(variables, z), spelled_out.apply(variables, z))


def test_simvq_moves_its_basis_by_every_token_and_its_codes_never():
    vq, variables = simvq()
    z = gaussian(1, DIM, seed=1)
    _, after = train(vq, variables, z)
    chex.assert_trees_all_equal(after, variables)
    slope = jax.grad(lambda params: vq.apply(variables | {"params": params}, z).loss)(variables["params"])
    moved = variables["params"]["codebook_transform"]["linear"]["kernel"]
    moved -= 0.1 * slope["codebook_transform"]["linear"]["kernel"]
    before = vq.apply(variables, jnp.arange(CODES), method="decode")
    params = {"codebook_transform": {"linear": {"kernel": moved}}}
    now = vq.apply(variables | {"params": params}, jnp.arange(CODES), method="decode")
    assert bool(jnp.all(jnp.any(before != now, axis=-1)))
    assert {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(variables)} == {"params", "codebook"}


def test_two_of_simvq_share_nothing_also_inside_of_another_module():
    # A default that is made inside of a module would become that module's child, and lose its place.
    class Two(nn.Module):
        @nn.compact
        def __call__(self, z):
            return [SimVQ(CODES, name="coarse")(z).loss, SimVQ(CODES, name="fine")(z).loss]

    params = Two().init(KEY, gaussian(1, DIM))["params"]
    assert jax.tree.map(jnp.shape, params) == {
        name: {"codebook_transform": {"linear": {"kernel": (DIM, DIM)}}} for name in ("coarse", "fine")
    }
    kernels = [params[name]["codebook_transform"]["linear"]["kernel"] for name in ("coarse", "fine")]
    assert np.any(kernels[0] != kernels[1])
    vq, variables = simvq()
    z = gaussian(*SHAPE, DIM)
    chex.assert_trees_all_equal(vq.clone(commitment_weight=0.25).apply(variables, z), vq.apply(variables, z))


def test_simvq_takes_any_transform():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, codes):
            return codes + nn.Dense(codes.shape[-1])(nn.gelu(nn.Dense(7)(codes)))

    vq = SimVQ(CODES, codebook=FrozenCodebook(transform=Network()), heads=2, distance="cosine")
    z = gaussian(*SHAPE, DIM)
    variables = vq.init(KEY, z)
    out = vq.apply(variables, z)
    decoded = vq.apply(variables, vq.apply(variables, z, method="encode"), method="decode")
    np.testing.assert_array_equal(decoded, out.quantized)


@few
@given(seed=st.integers(0, 2**16), dtype=st.sampled_from([jnp.float32, jnp.bfloat16]), masked=st.booleans())
def test_decoded_indices_are_the_output(seed, dtype, masked):
    vq, variables = simvq()
    z = (3 * gaussian(*SHAPE, DIM, seed=seed)).astype(dtype)
    mask = every_second(SHAPE) if masked else jnp.ones(SHAPE, bool)
    z = jnp.where(mask[..., None], z, jnp.nan)
    out, indices = apply(vq, variables, z, mask), encode(vq, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    decoded = vq.apply(variables, indices, method="decode")
    assert (decoded.dtype, out.quantized.dtype) == (jnp.float32, dtype)
    np.testing.assert_array_equal(decoded.astype(dtype), out.quantized)
    assert bool(jnp.all(jnp.isfinite(out.loss)))
    assert not np.any(out.quantized[~mask])


@pytest.mark.parametrize("mapped", [False, True])
def test_eight_devices_are_one(mapped):
    check_eight_devices(*simvq(), gaussian(32, DIM), mapped)
