"""SimVQ, which is a VectorQuantizer with other defaults, and RandomProjectionQuantizer, which never changes."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import CODES, DIM, KEY, every_second, gaussian, train
from vqjax import UserError, VectorQuantizer
from vqjax.quantizers import LinearTransform
from vqjax.quantizers.random_projection import RandomProjectionQuantizer
from vqjax.quantizers.vector import SimVQ

SHAPE, FEATURES, CODE_DIM = (4, 8), 6, 5
few = settings(deadline=None, derandomize=True, max_examples=10, suppress_health_check=list(HealthCheck))
fixed = pytest.mark.parametrize("num_codebooks", [1, 3])


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


@functools.cache
def random_projection(num_codebooks):
    vq = RandomProjectionQuantizer(CODES, CODE_DIM, num_codebooks)
    return vq, jax.jit(vq.init)(KEY, gaussian(1, FEATURES))


def test_simvq_is_a_vector_quantizer_with_three_other_defaults():
    changed = {
        f.name for f in dataclasses.fields(SimVQ) if getattr(SimVQ(4), f.name) != getattr(VectorQuantizer(4), f.name)
    }
    assert changed == {"codebook_update", "codebook_init", "codebook_transform"}
    vq, variables = simvq()
    spelled_out = VectorQuantizer(CODES, codebook_update="none", codebook_transform=LinearTransform())
    z = gaussian(*SHAPE, DIM)
    chex.assert_trees_all_equal(vq.apply(variables, z), spelled_out.apply(variables, z))
    assert SimVQ(CODES, codebook_transform=None).codebook_transform is None


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
    assert SimVQ(4).codebook_transform is not SimVQ(4).codebook_transform
    vq, variables = simvq()
    z = gaussian(*SHAPE, DIM)
    chex.assert_trees_all_equal(vq.clone(commitment_weight=0.25).apply(variables, z), vq.apply(variables, z))


def test_simvq_takes_any_transform():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, codes):
            return codes + nn.Dense(codes.shape[-1])(nn.gelu(nn.Dense(7)(codes)))

    vq = SimVQ(CODES, codebook_transform=Network(), heads=2, metric="cosine")
    z = gaussian(*SHAPE, DIM)
    variables = vq.init(KEY, z)
    out = vq.apply(variables, z)
    decoded = vq.apply(variables, vq.apply(variables, z, method="encode"), method="decode")
    np.testing.assert_array_equal(decoded, out.quantized)


@few
@given(
    seed=st.integers(0, 2**16),
    case=st.sampled_from([simvq, lambda: random_projection(1), lambda: random_projection(3)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    masked=st.booleans(),
)
def test_decoded_indices_are_the_output(seed, case, dtype, masked):
    vq, variables = case()
    z = (3 * gaussian(*SHAPE, DIM if isinstance(vq, SimVQ) else FEATURES, seed=seed)).astype(dtype)
    mask = every_second(SHAPE) if masked else jnp.ones(SHAPE, bool)
    z = jnp.where(mask[..., None], z, jnp.nan)
    out, indices = apply(vq, variables, z, mask), encode(vq, variables, z, mask)
    np.testing.assert_array_equal(out.indices, indices)
    decoded = vq.apply(variables, indices, method="decode")
    assert (decoded.dtype, out.quantized.dtype) == (jnp.float32, dtype)
    np.testing.assert_array_equal(decoded.astype(dtype), out.quantized)
    assert bool(jnp.all(jnp.isfinite(out.loss)))
    assert not np.any(out.quantized[~mask])


@fixed
def test_labels_are_the_nearest_unit_codes_of_standardized_projections(num_codebooks):
    vq, variables = random_projection(num_codebooks)
    # Far from zero, where the variance as a difference of mean squares has no digits left, and may be negative.
    z = gaussian(*SHAPE, FEATURES) + 3000
    out = apply(vq, variables, z)
    wide = np.asarray(z, np.float64)
    wide = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    projected = np.einsum("...d,cde->...ce", wide, np.asarray(variables["codebook"]["projections"], np.float64))
    codes = np.asarray(variables["codebook"]["quantizer"]["codes"], np.float64).reshape(num_codebooks, CODES, CODE_DIM)
    expected = np.argmax(np.einsum("...ce,cke->...ck", projected, codes), axis=-1)
    np.testing.assert_array_equal(out.indices, expected if num_codebooks > 1 else expected[..., 0])
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-6)
    assert out.quantized.shape == (*SHAPE, num_codebooks * CODE_DIM)
    units = vq.apply(variables, z, method="bypass").reshape(*projected.shape)
    np.testing.assert_allclose(units, projected / np.linalg.norm(projected, axis=-1, keepdims=True), atol=2e-3)


def test_targets_are_not_trained():
    vq, variables = random_projection(3)
    assert set(variables) == {"codebook"}
    assert jax.tree.map(jnp.shape, dict(variables["codebook"])) == {
        "projections": (3, FEATURES, CODE_DIM),
        "quantizer": {"codes": (3, CODES, CODE_DIM)},
    }
    _, after = train(vq, variables, gaussian(*SHAPE, FEATURES))
    chex.assert_trees_all_equal(after, variables)

    def total(z):
        out = vq.apply(variables, z)
        return out.loss + jnp.sum(out.quantized)

    loss, slope = jax.value_and_grad(total)(gaussian(*SHAPE, FEATURES))
    assert np.isfinite(loss)
    assert not np.any(slope)
    assert float(vq.apply(variables, gaussian(*SHAPE, FEATURES)).loss) == 0


def test_a_common_offset_collapses_the_labels_unless_features_are_standardized():
    # Section 3 of the paper gives this as the reason of the normalization.
    z = gaussian(64, FEATURES) + 20
    used = {}
    for standardize in (True, False):
        vq = RandomProjectionQuantizer(CODES, CODE_DIM, standardize=standardize)
        used[standardize] = len(np.unique(vq.apply(random_projection(1)[1], z, method="encode")))
    assert used[False] <= 2 < 6 <= used[True]


@pytest.mark.parametrize("create", [simvq, lambda: random_projection(3)])
@pytest.mark.parametrize("mapped", [False, True])
def test_eight_devices_are_one(create, mapped):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    alone, variables = create()
    z = gaussian(32, DIM if isinstance(alone, SimVQ) else FEATURES)
    mask = jnp.arange(32) > 5

    def step(vq, average, variables, z, mask):
        out = vq.apply(variables, z, mask)
        return average((out.loss, out.metrics)), (out.indices, out.quantized)

    expected = jax.jit(lambda *a: step(alone, lambda x: x, *a))(variables, z, mask)
    if mapped:
        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": (P(), P("data"))}
        average = lambda x: jax.lax.pmean(x, "data")  # noqa: E731
        of_part = functools.partial(step, alone.clone(axis_name="data"), average)
        actual = jax.jit(jax.shard_map(of_part, mesh=mesh, **specs))(variables, z, mask)
    else:
        whole, split = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
        placed = jax.device_put(z, split), jax.device_put(mask, split)
        actual = jax.jit(lambda *a: step(alone, lambda x: x, *a))(jax.device_put(variables, whole), *placed)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, r"num_codes=0 is not allowed: use a whole number of at least 1"),
        ({"code_dim": 2.0}, r"code_dim=2.0 is not allowed"),
        ({"num_codebooks": 0}, r"num_codebooks=0 is not allowed"),
    ],
)
def test_mistakes_are_named(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        RandomProjectionQuantizer(**({"num_codes": 4, "code_dim": 2} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    vq, variables = random_projection(1)
    with pytest.raises(UserError, match=r"z has 5 features, but the projections .* \(1, 6, 5\): pass z of 6 features"):
        vq.apply(variables, gaussian(2, 5))
    with pytest.raises(UserError, match=r"hold no projections: create them with init"):
        vq.apply({}, gaussian(2, 6))
    with pytest.raises(UserError, match=r"codebook_update='none' freezes the codebook"):
        SimVQ(4, replace_dead_codes=True)
