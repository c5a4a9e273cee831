"""The pure functions on a mesh with explicit axes give what they give on one device."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.arrays import gaussian
from vqjax import estimators, functional
from vqjax.functional import scalar

TOKENS, CODES, DIM = 16, 6, 4
KEY = jax.random.key(2)
E = gaussian(CODES, DIM, seed=1)
INDICES = jnp.arange(TOKENS) % CODES
Q = E[INDICES]
MASK = jnp.arange(TOKENS) % 3 > 0
RADICES = (4, 4, 5, 5)
OF_VECTORS = {
    "assign": lambda z: functional.assign(z, INDICES, CODES, MASK),
    "assignment_entropies": lambda z: functional.assignment_entropies(z, E, mask=MASK),
    "beam_search": lambda z: functional.beam_search(
        *(z, 2, 2),
        lambda stage, r, sums, count: functional.nearest_k_codes(r, E, count),
        lambda stage, i, sums: jnp.broadcast_to(sums[..., None, :], (*i.shape, DIM)),
    ),
    "bit_entropies": lambda z: functional.bit_entropies(z, mask=MASK),
    "feature_statistics": lambda z: functional.feature_statistics(z, MASK),
    "geometry_statistics": lambda z: functional.geometry_statistics(z, Q, MASK),
    "index_statistics": lambda z: functional.index_statistics((z[:, 0] > 0).astype(jnp.int32), CODES, MASK),
    "index_statistics, sorted": lambda z: functional.index_statistics((z[:, 0] > 0).astype(jnp.int32), 2**30, MASK),
    "kmeans": lambda z: functional.kmeans(KEY, z, CODES, mask=MASK, iterations=2),
    "kmeans_plus_plus": lambda z: functional.kmeans_plus_plus(KEY, z, CODES, MASK),
    "moments_loss": lambda z: functional.moments_loss(z, scalar.MOMENTS["kurtosis"], MASK),
    "nearest_codes": lambda z: functional.nearest_codes(z, E),
    "nearest_codes, divided": lambda z: functional.nearest_codes(z, E, shards=2),
    "nearest_k_codes": lambda z: functional.nearest_k_codes(z, E, 2),
    "nearest_levels": lambda z: functional.nearest_levels(z, functional.level_values(RADICES), RADICES),
    "orthogonality": functional.orthogonality,
    "region_targets": lambda z: functional.region_targets(E, *functional.assign(z, INDICES // 2, CODES, MASK)),
    "replace_codes": lambda z: functional.replace_codes(KEY, functional.init_codebook(E), jnp.arange(CODES) < 3, z),
    "sample_codes": lambda z: functional.sample_codes(KEY, z, E, temperature=1.0),
    "sample_latents": lambda z: functional.sample_latents(KEY, z, CODES, MASK),
    "values_at": lambda z: functional.values_at((z > 0) + 0, functional.level_values(RADICES), RADICES),
    "clip_norm_ratio": lambda z: estimators.clip_norm_ratio("rotation", 2.0)(z, Q),
    "diveq": lambda z: estimators.diveq(z, Q, key=KEY),
    "dynamic_straight_through": lambda z: estimators.dynamic_straight_through(z, Q, indices=INDICES, num_codes=CODES),
    "gumbel_softmax": lambda z: estimators.gumbel_softmax(z, E, key=KEY),
    "index_backpropagation": lambda z: estimators.index_backpropagation(z, E),
    "reflection": lambda z: estimators.reflection(z, Q),
    "space_filling_diveq": lambda z: estimators.space_filling_diveq(z, E, key=KEY),
}
OF_MAPS = {
    "adaptive_average_pool": lambda x: functional.adaptive_average_pool(x, (3, 4)),
    "interpolate_linearly": lambda x: functional.interpolate_linearly(x, (7, 9)),
    "max_vector_pool": functional.max_vector_pool,
    "softmax_vector_pool": functional.softmax_vector_pool,
}


def check(function, x, spec, mesh, named):
    def with_gradient(x):
        def total(x):
            leaves = jax.tree.leaves(function(x))
            return sum(jnp.sum(y) for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)) + jnp.sum(x**2)

        return function(x), jax.grad(total)(x)

    expected = jax.jit(with_gradient)(x)
    with jax.set_mesh(mesh) if named else contextlib.nullcontext():
        divided = jax.device_put(x, NamedSharding(mesh, spec))
        actual = jax.jit(lambda x: with_gradient(x))(divided)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert actual[1].sharding.is_equivalent_to(divided.sharding, x.ndim)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", OF_VECTORS)
def test_a_function_of_divided_vectors(name, named):
    check(OF_VECTORS[name], gaussian(TOKENS, DIM), P("data"), jax.make_mesh((8,), ("data",)), named)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", OF_MAPS)
def test_a_function_of_maps_divided_over_batch_and_rows(name, named):
    check(OF_MAPS[name], gaussian(8, 6, 6, 3), P("data", "rows"), jax.make_mesh((4, 2), ("data", "rows")), named)
