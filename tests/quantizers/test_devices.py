"""Eight devices and one give the same codebook: under jit over a sharded batch, and under a mapped axis."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import replacing
from vqjax import VectorQuantizer
from vqjax.functional import search as nearest

TOKENS, CODES, DIM = 128, 32, 4
KEY = jax.random.key(5)
REPLICATED, SPLIT = P(), P("data")


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def batch():
    """Tokens, and a mask of which some devices hold nothing and others everything."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(TOKENS, DIM)).astype(np.float32)
    mask = rng.uniform(size=TOKENS) < np.linspace(-0.3, 1.3, TOKENS)
    assert mask[:16].sum() == 0
    assert mask[-16:].sum() == 16
    z[~mask] = np.nan
    return jnp.asarray(z), jnp.asarray(mask)


def step(vq, variables, z, mask, average=lambda x: x):
    """Compute one training step; `average` is over the mapped axis, where there is one."""

    def loss(params, z):
        out, changed = vq.apply(variables | params, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": KEY})
        return average(out.loss + jnp.mean(out.quantized**2)), (out, changed.get("codebook", {}))

    params = {name: value for name, value in variables.items() if name == "params"}
    (value, (out, state)), (of_params, of_z) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    whole = {"loss": value, "metrics": average(out.metrics), "state": state, "gradient": of_params}
    return whole, {"indices": out.indices, "gradient": of_z}


def variables_of(vq):
    variables = jax.jit(vq.init)(KEY, jnp.zeros((1, DIM)))
    relative_usage = jnp.linspace(0.9, 1.1, CODES)  # so that some codes die
    return variables | {"codebook": variables["codebook"] | {"relative_usage": relative_usage}}


def sharded(program, *arguments):
    """Compiles a program of (variables, tokens, mask) with the last two split over eight devices."""
    whole, split = (NamedSharding(mesh(), spec) for spec in (REPLICATED, SPLIT))
    arguments = tuple(jax.device_put(x, s) for x, s in zip(arguments, (whole, split, split), strict=True))
    return jax.jit(program).lower(*arguments).compile(), arguments


def was_replaced(state):
    return np.asarray(state["relative_usage"]) == 1


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_sharded_batch_trains_as_on_one_device(codebook):
    vq = VectorQuantizer(CODES, codebook=replacing(codebook, below=0.97))
    variables = variables_of(vq)
    arguments = (variables, *batch())
    expected = jax.jit(lambda *a: step(vq, *a))(*arguments)
    compiled, split_arguments = sharded(lambda *a: step(vq, *a), *arguments)
    actual = compiled(*split_arguments)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(actual)} == {8}
    assert_same_step(actual, expected)
    assert_no_large_gather(compiled.as_text())


def assert_same_step(actual, expected):
    """Compare decisions exactly, and numbers as far as two compilations of them agree."""
    (whole, parts), (expected_whole, expected_parts) = actual, expected
    np.testing.assert_array_equal(parts["indices"], expected_parts["indices"])
    state, expected_state = whole["state"], expected_whole["state"]
    for name in {"counts", "relative_usage"} & set(state):
        # Products and sums of a moving average may be fused in one program and not in the other.
        np.testing.assert_array_max_ulp(np.asarray(state[name]), np.asarray(expected_state[name]), maxulp=4)
    replaced = was_replaced(expected_state)
    np.testing.assert_array_equal(was_replaced(state), replaced)
    assert 5 < replaced.sum() < CODES
    drawn = "codes" if "codes" in state else "offsets"
    np.testing.assert_array_equal(state[drawn][replaced], expected_state[drawn][replaced])
    chex.assert_trees_all_close(actual, expected, atol=1e-5)
    assert all(np.any(x) for x in jax.tree.leaves((whole["gradient"], parts["gradient"])))


def assert_no_large_gather(text):
    """Devices exchange sums and one number per token: neither the tokens, nor tokens times codes."""
    assert 0 < max(np.prod(shape) for shape in gathered(text)) <= TOKENS  # the priorities of the draw
    assert "all-reduce" in text


def gathered(text):
    """Return the shapes of arrays that devices gather in a compiled program."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    return [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_codebook_divided_over_devices_trains_as_a_whole_one(codebook, monkeypatch):
    """Four devices hold eight codes each, and no device ever holds a table of all of them."""
    monkeypatch.setattr(nearest, "_CODES_PER_TILE", 3)
    monkeypatch.setattr(nearest, "_TILE_ELEMENTS", 96)
    settings = {"codebook": replacing(codebook, below=0.97)}
    vq = VectorQuantizer(CODES, codebook_shards=4, **settings)
    arguments = (variables_of(vq), *batch())
    expected = jax.jit(lambda *a: step(VectorQuantizer(CODES, **settings), *a))(*arguments)
    both = jax.make_mesh((2, 4), ("data", "codes"), axis_types=(AxisType.Auto,) * 2)
    specs = (P("codes"), P("data"), P("data"))
    placed = [jax.device_put(x, NamedSharding(both, spec)) for x, spec in zip(arguments, specs, strict=True)]
    by_code, by_token, whole = (NamedSharding(both, spec) for spec in (P("codes"), P("data"), P()))
    results = {"loss": whole, "metrics": whole, "state": by_code, "gradient": by_code}
    program = jax.jit(lambda *a: step(vq, *a), out_shardings=(results, by_token))
    compiled = program.lower(*placed).compile()
    actual = compiled(*placed)
    assert_same_step(actual, expected)
    crossing = re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", compiled.as_text())
    assert crossing
    assert not [shapes for shapes in crossing if f"[{CODES},{DIM}]" in shapes or f"[{TOKENS},{DIM}]" in shapes]


@pytest.mark.full
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_kmeans_of_a_sharded_batch_draws_the_same_tokens(distance):
    vq = VectorQuantizer(CODES, distance=distance)

    def start(variables, z, mask, iterations):
        arguments = {"mutable": ["codebook"], "rngs": {"quantizer": KEY}, "iterations": iterations}
        return vq.apply(variables, z, mask, method="kmeans_init", **arguments)[1]["codebook"]

    def both(*arguments):
        return start(*arguments, 0)["codes"], start(*arguments, 5)

    arguments = (variables_of(vq), *batch())
    expected_drawn, expected = jax.jit(both)(*arguments)
    compiled, split_arguments = sharded(both, *arguments)
    drawn, state = compiled(*split_arguments)
    np.testing.assert_array_equal(drawn, expected_drawn)
    np.testing.assert_array_equal(state["counts"], expected["counts"])
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    assert_no_large_gather(compiled.as_text())


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_mapped_axis_is_the_global_batch(codebook, monkeypatch):
    # Chunks as well: their scan once failed shard_map's check of what varies over devices.
    monkeypatch.setattr(nearest, "_CODES_PER_TILE", 10)
    monkeypatch.setattr(nearest, "_TILE_ELEMENTS", 20)
    arguments = {"codebook": replacing(codebook, below=0.97)}
    mapped, alone = VectorQuantizer(CODES, axis_name="data", **arguments), VectorQuantizer(CODES, **arguments)
    variables = variables_of(mapped)
    expected = jax.jit(lambda *a: step(alone, *a))(variables, *batch())

    run = jax.shard_map(
        lambda *a: step(mapped, *a, average=lambda x: jax.lax.pmean(x, "data")),
        mesh=mesh(),
        in_specs=(REPLICATED, SPLIT, SPLIT),
        out_specs=(REPLICATED, SPLIT),
    )
    assert_same_step(jax.jit(run)(variables, *batch()), expected)


@pytest.mark.full
def test_averaging_gradients_over_the_devices_of_pmap_is_enough():
    # The devices hold between 0 and 16 unmasked tokens: a mean of means would weigh them alike.
    mapped = VectorQuantizer(CODES, axis_name="data", codebook="gradient")
    alone = VectorQuantizer(CODES, codebook="gradient")
    variables = jax.jit(alone.init)(KEY, jnp.zeros((1, DIM)))
    expected, expected_parts = step(alone, variables, *batch())
    z, mask = (x.reshape(8, 16, *x.shape[1:]) for x in batch())
    whole, parts = jax.pmap(lambda z, mask: step(mapped, variables, z, mask), axis_name="data")(z, mask)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[3], whole["state"]), expected["state"], atol=1e-5)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), whole)
    chex.assert_trees_all_close(mean, expected, atol=1e-5)
    chex.assert_trees_all_close(parts["gradient"].reshape(TOKENS, DIM) / 8, expected_parts["gradient"], atol=1e-5)


@pytest.mark.full
def test_kmeans_under_a_mapped_axis_clusters_the_global_batch():
    mapped, alone = VectorQuantizer(CODES, axis_name="data"), VectorQuantizer(CODES)
    variables = variables_of(alone)

    def start(vq, variables, z, mask):
        arguments = {"method": "kmeans_init", "mutable": ["codebook"], "rngs": {"quantizer": KEY}}
        return vq.apply(variables, z, mask, **arguments)[1]["codebook"]

    expected = start(alone, variables, *batch())
    specs = {"in_specs": (REPLICATED, SPLIT, SPLIT), "out_specs": REPLICATED}
    actual = jax.shard_map(lambda *a: start(mapped, *a), mesh=mesh(), **specs)(variables, *batch())
    np.testing.assert_array_equal(actual["counts"], expected["counts"])
    chex.assert_trees_all_close(actual, expected, atol=1e-5)


@pytest.mark.full
def test_initialization_happens_outside_of_the_mapped_function():
    # It failed with "unbound axis name: data".
    mapped, alone = VectorQuantizer(CODES, axis_name="data"), VectorQuantizer(CODES)
    z = batch()[0]
    chex.assert_trees_all_equal(mapped.init(KEY, z), alone.init(KEY, z))
