"""k-means++ by its definition, and k-means with fewer tokens than codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqjax.errors import UserError
from vqjax.functional.kmeans import kmeans, kmeans_plus_plus


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
