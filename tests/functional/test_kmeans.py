"""k-means against a NumPy loop, k-means++ by its definition, and both over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers.arrays import gaussian, half_masked
from vqjax.errors import UserError
from vqjax.functional.codebook import sample_latents
from vqjax.functional.kmeans import kmeans, kmeans_plus_plus

TOKENS, CODES, DIM = 60, 10, 3
KEY = jax.random.key(7)


def lloyd(z, means, iterations, unit_norm):
    z, means = np.asarray(z, np.float64), np.array(means, np.float64)
    for _ in range(iterations):
        indices = np.argmin(np.sum((z[:, None] - means) ** 2, -1), axis=1)
        for code in set(indices.tolist()):
            means[code] = z[indices == code].mean(0)
            means[code] /= np.linalg.norm(means[code]) if unit_norm else 1
    counts = np.bincount(indices, minlength=len(means))
    return means, counts, np.array([z[indices == code].sum(0) for code in range(len(means))])


@pytest.mark.parametrize("unit_norm", [False, True])
def test_kmeans_is_lloyds_algorithm_from_random_tokens(unit_norm):
    z = gaussian(TOKENS, DIM)
    if unit_norm:
        z /= jnp.linalg.norm(z, axis=1, keepdims=True)
    state = kmeans(KEY, z, CODES, iterations=4, unit_norm=unit_norm)
    codes, counts, sums = lloyd(z, sample_latents(KEY, z, CODES), 4, unit_norm)
    np.testing.assert_allclose(state.codes, codes, atol=1e-5)
    np.testing.assert_array_equal(state.counts, counts)
    np.testing.assert_allclose(state.sums, sums, atol=1e-5)
    np.testing.assert_array_equal(state.relative_usage, 1)


def test_masked_kmeans_does_not_see_the_masked_tokens():
    z, mask, valid = half_masked(TOKENS, DIM)
    state = kmeans(KEY, z, CODES, iterations=4, mask=mask)
    codes, counts, _ = lloyd(valid, sample_latents(KEY, z, CODES, mask), 4, False)
    np.testing.assert_allclose(state.codes, codes, atol=1e-5)
    np.testing.assert_array_equal(state.counts, counts)


def test_kmeans_of_fewer_tokens_than_codes_leaves_every_code_on_a_token():
    # 20 tokens and 64 codes gave 44 codes of zero in vector-quantize-pytorch.
    z = gaussian(20, DIM) + 3
    state = kmeans(KEY, z, 64)
    tokens = {tuple(token) for token in z.tolist()}
    assert {tuple(code) for code in state.codes.tolist()} == tokens
    assert np.sum(np.asarray(state.counts) == 1) == 20
    assert np.sum(np.asarray(state.counts)) == 20


def test_kmeans_keeps_the_mean_of_a_cluster_that_becomes_empty():
    # Equal tokens: all but one of the means have no token of their own, from the first iteration on.
    # 64 of them, so that their mean is exact.
    state = kmeans(KEY, jnp.full((64, DIM), 2.5), CODES)
    np.testing.assert_array_equal(state.codes, 2.5)
    assert state.counts.tolist() == [64.0] + [0.0] * (CODES - 1)


def test_plus_plus_draws_with_probability_proportional_to_the_squared_distance():
    z = jnp.array([[0.0], [1.0], [3.0]])
    second = jax.vmap(lambda key: kmeans_plus_plus(key, z, 2))(jax.random.split(jax.random.key(0), 6000))[..., 0]
    after_zero = np.asarray(second[second[:, 0] == 0][:, 1])
    # From 0 the squared distances of the others are 1 and 9.
    np.testing.assert_allclose(np.mean(after_zero == 3.0), 0.9, atol=0.02)
    assert not np.any(after_zero == 0.0)


def test_plus_plus_takes_every_distinct_token_before_any_twice_and_none_that_is_masked():
    z = jnp.array([[0.0], [5.0], [5.0], [0.0], [9.0], [np.nan]])
    mask = jnp.array([True, True, True, True, True, False])
    drawn = kmeans_plus_plus(jax.random.key(1), z, 8, mask)[:, 0]
    assert sorted(drawn[:3].tolist()) == [0.0, 5.0, 9.0]
    assert bool(jnp.all(jnp.isfinite(drawn)))


def test_plus_plus_finds_far_clusters_that_random_tokens_miss():
    rng = np.random.default_rng(0)
    centers = np.arange(10)[:, None] * 100.0
    sizes = [500] + [5] * 9
    z = jnp.asarray(
        np.concatenate([rng.normal(c, 1, (n, 1)) for c, n in zip(centers, sizes, strict=True)]), jnp.float32
    )

    def error(start):
        codes = kmeans(jax.random.key(3), z, 10, start=start).codes
        return float(jnp.mean(jnp.min(jnp.square(z - codes.T), axis=1)))

    assert error("plus_plus") < 2
    assert error("random") > 100


@pytest.mark.parametrize("start", ["random", "plus_plus"])
def test_eight_devices_start_from_the_same_tokens(start):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
    run = jax.jit(lambda z: kmeans(jax.random.key(2), z, 8, iterations=2, start=start).codes)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(run(z), run(split), rtol=1e-5, atol=1e-6)


def test_an_unknown_start_is_refused():
    with pytest.raises(UserError, match="start must be 'random', 'plus_plus' or an array of means, got 'tokens'"):
        kmeans(jax.random.key(0), jnp.zeros((4, 1)), 2, start="tokens")
