"""Clipping of the norm ratio."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian, pulled_back
from vqjax.errors import UserError
from vqjax.estimators import ESTIMATORS, clip_norm_ratio, diveq, gumbel_softmax, rotation
from vqjax.functional import norm_ratio

TOKENS, DIM = 12, 3
Z, Q, G = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1), gaussian(TOKENS, DIM, seed=2)


@pytest.mark.parametrize("name", ["rotation", "rotation_normalized", "reflection"])
def test_clipping_bounds_the_factor_and_nothing_else(name):
    z = Z * jnp.logspace(-3, 1, TOKENS)[:, None]
    value, (to_z,) = pulled_back(lambda z: clip_norm_ratio(name, 2.0)(z, Q), G, z)
    np.testing.assert_array_equal(value, Q)
    _, (unbounded,) = pulled_back(lambda z: ESTIMATORS[name](z, Q), G, z)
    factor = np.minimum(1, 2.0 / np.asarray(norm_ratio(z, Q)))
    assert factor.min() < 0.1
    np.testing.assert_allclose(to_z, factor * unbounded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "max_ratio", "message"),
    [
        ("straight_through", 1.0, r"estimator must scale gradients by \|q\|/\|z\|, got 'straight_through'"),
        ("rotation", 0.0, "max_ratio must be a finite number above 0, got 0.0"),
        ("rotation", float("inf"), "max_ratio must be a finite number above 0, got inf"),
        ("rotatoin", 1.0, "estimator must be the name of one, .*, got 'rotatoin'; did you mean 'rotation'"),
    ],
)
def test_estimators_and_ratios_that_cannot_be_clipped_are_refused(estimator, max_ratio, message):
    with pytest.raises(UserError, match=message):
        clip_norm_ratio(estimator, max_ratio)


@pytest.mark.parametrize("estimator", [functools.partial(diveq, variance=1.0), gumbel_softmax, lambda z, codes: z])
def test_a_partial_of_an_estimator_that_does_not_scale_is_refused(estimator):
    with pytest.raises(UserError, match="estimator must scale gradients"):
        clip_norm_ratio(estimator, 1.0)


@pytest.mark.full
def test_pairs_without_a_ratio_keep_their_gradient():
    z, q = jnp.array([[1e-8, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    gradient = jax.grad(lambda z: jnp.sum(clip_norm_ratio(rotation, 1.0)(z, q)))(z)
    np.testing.assert_array_equal(gradient, jnp.ones_like(z))
