"""Every quantizer on a mesh with explicit axes, as jax.make_mesh makes them, does what it does on one device."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import vqjax.nnx
from helpers.recipes import KEY, NAMES, create, evaluate, train
from vqjax import EMACodebook, GradientCodebook, Replacement, VectorQuantizer
from vqjax.functional.regularizers import Region
from vqjax.quantizers import LearnedAffine, RunningAffine, VQBridge

pytestmark = pytest.mark.full

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@functools.partial(jax.jit, static_argnames=("do", "vq"))
def compiled(do, vq, variables, z):
    return do(vq, variables, z)


def explicit(devices=8):
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])


def within(mesh, named):
    """Users may or may not name their mesh to jax."""
    return jax.set_mesh(mesh) if named else contextlib.nullcontext()


def check(do, vq, variables, z, devices=8, named=True, placed=True):
    expected = compiled(do, vq, variables, z)
    mesh = explicit(devices)
    split = jax.device_put(z, NamedSharding(mesh, P("data")))
    variables = jax.device_put(variables, NamedSharding(mesh, P())) if placed else variables
    with within(mesh, named):
        actual = compiled(do, vq, variables, split)
    chex.assert_trees_all_close(actual, expected, **TOLERANCE)
    return actual


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name):
    out, indices, vectors = check(evaluate, *create(name))
    divided = {x.sharding.spec[0] for x in (out.quantized, out.indices, indices, vectors)}
    assert divided == {"data"}
    assert {x.sharding.is_fully_replicated for x in (out.loss, *jax.tree.leaves(out.metrics))} == {True}


@pytest.mark.parametrize("name", NAMES)
def test_training(name):
    (_, (out, updates)), (of_params, of_z) = check(train, *create(name))
    assert {x.sharding.spec[0] for x in (out.quantized, out.indices, of_z)} == {"data"}
    assert {x.sharding.is_fully_replicated for x in jax.tree.leaves((updates, of_params))} <= {True}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("named", "placed"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("do", [evaluate, train])
def test_any_number_of_devices_and_any_place_of_the_variables(do, named, placed, devices):
    check(do, *create("residual_vq"), devices, named, placed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("named", "placed"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("do", [evaluate, train])
def test_every_quantizer_in_any_place(do, named, placed, name):
    check(do, *create(name), 8, named, placed)


OPTIONS = {
    "replacement": {"codebook": EMACodebook(decay=0.5, replace=Replacement(below=0.9))},
    "replaced, learned": {"codebook": GradientCodebook(replace=Replacement(None, 1), transform=LearnedAffine())},
    "bridge": {"codebook": GradientCodebook(transform=VQBridge(2, heads=2, width=4)), "regularizers": (Region(1.0),)},
    "running affine": {"codebook": EMACodebook(transform=RunningAffine()), "heads": 2},
    "sampling": {"sampling_temperature": 0.5, "distance": "cosine"},
    "gumbel_softmax": {"estimator": "gumbel_softmax", "codebook": "gradient"},
    "space_filling_diveq": {"estimator": "space_filling_diveq", "codebook": "gradient"},
    "dynamic_straight_through": {"estimator": "dynamic_straight_through", "codebook_dim": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_needs_more_than_its_own_token(name):
    vq, z = VectorQuantizer(num_codes=16, **OPTIONS[name]), create("vq")[2]
    variables = jax.jit(vq.init)({"params": KEY, "quantizer": KEY}, z)
    check(train, vq, variables, z)


@pytest.mark.parametrize("named", [True, False])
def test_k_means(named):
    def start(vq, variables, z):
        arguments = {"method": "kmeans_init", "mutable": ["codebook"], "rngs": {"quantizer": KEY}}
        return vq.apply(variables, z, **arguments)[1]

    vq, variables, z = create("residual_vq")
    check(start, vq, variables, z, named=named)


@pytest.mark.parametrize("named", [True, False])
def test_a_mask_and_features_divided_over_a_second_axis(named):
    vq, variables, z = create("vq")
    mask = jnp.arange(8)[:, None, None] < jnp.broadcast_to(6, z.shape[:-1])
    evaluate = jax.jit(functools.partial(vq.apply, train=False))
    expected = evaluate(variables, z, mask)
    mesh = jax.make_mesh((4, 2), ("data", "features"))
    split = jax.device_put(z, NamedSharding(mesh, P("data", None, None, "features")))
    with within(mesh, named):
        actual = evaluate(variables, split, jax.device_put(mask, NamedSharding(mesh, P("data"))))
    chex.assert_trees_all_close(actual, expected, **TOLERANCE)
    assert actual.quantized.sharding.spec == P("data", None, None, "features")


def test_initialization_with_a_divided_batch():
    vq, variables, z = create("vq")
    mesh = explicit()
    with jax.set_mesh(mesh):
        keys = {"params": jax.random.key(1), "quantizer": jax.random.key(2)}
        created = jax.jit(vq.init)(keys, jax.device_put(z, NamedSharding(mesh, P("data"))))
    chex.assert_trees_all_equal(created, variables)


@pytest.mark.parametrize("named", [True, False])
def test_without_compilation(named):
    vq, variables, z = create("vq")
    arguments = {"train": True, "mutable": ["codebook"], "rngs": {"quantizer": KEY}}
    expected = vq.apply(variables, z, **arguments)
    mesh = explicit()
    with within(mesh, named):
        actual = vq.apply(variables, jax.device_put(z, NamedSharding(mesh, P("data"))), **arguments)
        vectors = vq.apply(variables, actual[0].indices, method="decode")
    chex.assert_trees_all_close(actual, expected, **TOLERANCE)
    chex.assert_trees_all_equal(vectors, actual[0].quantized)


def test_a_codebook_that_is_divided_over_the_devices_stays_so():
    vq, variables, z = create("vq")
    expected = compiled(train, vq, variables, z)
    mesh = jax.make_mesh((2, 4), ("data", "codes"))
    place = functools.partial(NamedSharding, mesh)
    vq = vq.clone(codebook_shards=4)
    with jax.set_mesh(mesh):
        divided = jax.device_put(variables, place(P("codes")))
        actual = compiled(train, vq, divided, jax.device_put(z, place(P("data"))))
    chex.assert_trees_all_close(actual, expected, **TOLERANCE)
    assert {x.sharding.spec[0] for x in jax.tree.leaves(actual[0][1][1])} == {"codes"}


def test_in_an_nnx_model():
    z = create("vq")[2]

    def run(z):
        quantizer = vqjax.nnx.Quantizer(VectorQuantizer(num_codes=16), dim=8, rngs=nnx.Rngs(0))
        out = nnx.jit(lambda quantizer, z: quantizer(z, train=True))(quantizer, z)
        return out, nnx.to_pure_dict(nnx.state(quantizer, vqjax.nnx.CodebookState))

    expected = run(z)
    mesh = explicit()
    with jax.set_mesh(mesh):
        actual = run(jax.device_put(z, NamedSharding(mesh, P("data"))))
    chex.assert_trees_all_close(actual, expected, **TOLERANCE)


def test_indices_that_are_wrong_are_still_nan():
    vq, variables, _ = create("vq")
    mesh = explicit()
    indices = jax.device_put(np.array([0, -1, 256, 5, 5, 5, 5, -7]), NamedSharding(mesh, P("data")))
    vectors = np.asarray(jax.jit(functools.partial(vq.apply, method="decode"))(variables, indices))
    np.testing.assert_array_equal(np.isnan(vectors).all(-1), np.isin(np.arange(8), (2, 7)))
