"""Feature statistics and the affine map between them."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.functional.affine import FeatureStatistics, feature_statistics, match_statistics, update_statistics

TOKENS, CODES, DIM = 40, 12, 4
Z, E = gaussian(TOKENS, DIM), gaussian(CODES, DIM, seed=1)


def test_matching_statistics_and_back():
    source, target = feature_statistics(E), feature_statistics(3 * Z + 5)
    moved = match_statistics(E, source, target)
    for measured, wanted in zip(feature_statistics(moved), target, strict=True):
        np.testing.assert_allclose(measured, wanted, rtol=1e-4)
    np.testing.assert_allclose(match_statistics(moved, target, source), E, rtol=1e-4, atol=1e-5)


def test_statistics_see_only_the_mask_and_survive_an_empty_one():
    mask = jnp.arange(TOKENS) % 2 == 0
    hidden = jnp.where(mask[:, None], Z, jnp.nan)
    for measured, wanted in zip(feature_statistics(hidden, mask), feature_statistics(Z[::2]), strict=True):
        np.testing.assert_allclose(measured, wanted, rtol=1e-5, atol=1e-7)
    empty = feature_statistics(hidden, jnp.zeros(TOKENS, bool))
    assert empty.mean.tolist() == [0.0] * DIM
    assert empty.variance.tolist() == [1.0] * DIM
    moved = update_statistics(FeatureStatistics(jnp.zeros(DIM), jnp.ones(DIM)), empty, 0.9)
    assert moved.variance.tolist() == pytest.approx([1.0] * DIM)
