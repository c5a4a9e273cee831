"""Dynamic straight-through: the closest latent of each code, over masks and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from helpers.arrays import gaussian, pulled_back
from vqjax.estimators import dynamic_straight_through
from vqjax.functional import nearest_codes

TOKENS, CODES, DIM = 12, 5, 3
KEY = jax.random.key(2)
Z, Q, G = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1), gaussian(TOKENS, DIM, seed=2)
CODEBOOK = gaussian(CODES, DIM, seed=3)


def test_dynamic_straight_through_trusts_the_closest_token_of_each_code():
    indices = nearest_codes(Z, CODEBOOK)
    q = CODEBOOK[indices]
    mask = jnp.arange(TOKENS) % 3 != 0
    estimate = functools.partial(dynamic_straight_through, indices=indices, num_codes=CODES, mask=mask)
    value, (to_z, to_q) = pulled_back(estimate, G, Z, q)
    np.testing.assert_array_equal(value, q)
    apart = np.sum(np.square(np.asarray(Z - q, np.float64)), -1)
    for token in np.flatnonzero(mask):
        rivals = apart[np.asarray(mask) & (np.asarray(indices) == int(indices[token]))]
        np.testing.assert_allclose(to_z[token], G[token] * rivals.min() / apart[token], rtol=1e-4)
    assert float(jnp.max(jnp.abs(to_q))) == 0


@pytest.mark.full
def test_dynamic_straight_through_compares_tokens_of_all_devices():
    z, indices = gaussian(16, DIM), jnp.arange(16) % 2
    q = CODEBOOK[indices]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(z, q, indices, axis_name=None):
        estimate = functools.partial(dynamic_straight_through, indices=indices, num_codes=2, axis_name=axis_name)
        return jax.grad(lambda z: jnp.sum(estimate(z, q)))(z)

    split = functools.partial(gradient, axis_name="data")
    mapped = jax.shard_map(split, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(mapped(z, q, indices), gradient(z, q, indices), rtol=1e-6)


def test_dynamic_straight_through_ignores_whatever_a_masked_token_holds():
    z, indices = Z[:6], jnp.arange(6) % 4
    z = z.at[0].set(jnp.nan).at[1].set(jnp.inf).at[4].set(CODEBOOK[0])
    mask = jnp.array([False, False, True, True, False, True])
    estimate = functools.partial(dynamic_straight_through, indices=indices, num_codes=CODES)
    gradient = jax.grad(lambda z, mask: jnp.sum(estimate(z, CODEBOOK[indices], mask=mask)))
    found = gradient(z, mask)
    assert bool(jnp.all(jnp.isfinite(found)))
    np.testing.assert_array_equal(found[jnp.array([2, 3, 5])], 1.0)
