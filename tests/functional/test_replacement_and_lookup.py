"""Least-recently-used codes, sampled codes, the k nearest, and affine statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.functional import chunks
from vqjax.functional.affine import FeatureStatistics, feature_statistics, match_statistics, update_statistics
from vqjax.functional.codebook import Assignment, ema_update, init_codebook, unused_codes, update_idle
from vqjax.functional.search import nearest_codes, nearest_k_codes, nearest_own_codes, sample_codes

TOKENS, CODES, DIM = 40, 12, 4


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Z, E = gaussian(TOKENS, DIM), gaussian(CODES, DIM, seed=1)


def test_smoothing_is_laplace_and_drags_unused_codes_to_the_origin():
    state = init_codebook(E, "one_token")
    batch = Assignment(jnp.zeros(CODES).at[0].set(10.0), jnp.zeros((CODES, DIM)).at[0].set(3.0))
    after = ema_update(state, batch, decay=0.8, smoothing=1e-2)
    counts = 0.8 + 0.2 * np.asarray(batch.counts, np.float64)
    smoothed = (counts + 1e-2) / (counts.sum() + CODES * 1e-2) * counts.sum()
    sums = 0.8 * np.asarray(E, np.float64) + 0.2 * np.asarray(batch.sums)
    np.testing.assert_allclose(after.codes, sums / smoothed[:, None], rtol=1e-5)
    for _ in range(100):
        after = ema_update(after, batch, decay=0.8, smoothing=1e-5)
    assert float(jnp.max(jnp.abs(after.codes[1:]))) < 1e-4


def test_the_official_start_throws_unused_codes_far_away_at_first():
    # Measured in reference code: unused codes are multiplied by about 8e4 after the first step.
    batch = Assignment(jnp.zeros(CODES).at[0].set(10.0), jnp.zeros((CODES, DIM)).at[0].set(3.0))
    after = ema_update(init_codebook(E, "sums_only"), batch, decay=0.8, smoothing=1e-5)
    growth = np.linalg.norm(after.codes[1:], axis=-1) / np.linalg.norm(E[1:], axis=-1)
    np.testing.assert_allclose(growth, 0.8 / 1e-5, rtol=1e-3)


def test_a_decay_per_code_freezes_the_code_whose_decay_is_one():
    batch = Assignment(jnp.full(CODES, 2.0), jnp.ones((CODES, DIM)))
    decay = jnp.linspace(0.5, 1.0, CODES)
    after = ema_update(init_codebook(E, "one_token"), batch, decay=decay, smoothing=1e-5)
    np.testing.assert_array_equal(after.codes[-1], E[-1])
    for k in range(3):
        alone = ema_update(init_codebook(E, "one_token"), batch, decay=float(decay[k]))
        np.testing.assert_allclose(after.codes[k], alone.codes[k], rtol=1e-4)


def test_idle_counts_batches_and_an_empty_batch_counts_for_none():
    idle = jnp.array([3, 0, 7])
    np.testing.assert_array_equal(update_idle(idle, jnp.array([0.0, 5.0, 0.0])), [4, 0, 8])
    np.testing.assert_array_equal(update_idle(idle, jnp.zeros(3)), idle)
    np.testing.assert_array_equal(unused_codes(jnp.array([4, 0, 8]), 8), [False, False, True])


@pytest.mark.parametrize("budget", [2**23, 5 * CODES])
def test_the_k_nearest_are_in_order_with_ties_to_the_lowest(monkeypatch, budget):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    codes = E.at[7].set(E[2])
    distances = np.sum((np.asarray(Z, np.float64)[:, None] - np.asarray(codes, np.float64)) ** 2, -1)
    expected = np.argsort(distances, axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(nearest_k_codes(Z, codes, 5), expected)
    np.testing.assert_array_equal(nearest_k_codes(Z, codes, 1)[:, 0], nearest_codes(Z, codes))


@pytest.mark.parametrize("k", [0, CODES + 1, True])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(UserError, match=rf"k must be a whole number in \[1, {CODES}\], the number of codes, got {k}"):
        nearest_k_codes(Z, E, k)


def test_own_codebooks_that_are_equal_are_one_codebook():
    own = jnp.broadcast_to(E, (TOKENS, CODES, DIM))
    np.testing.assert_array_equal(nearest_own_codes(Z, own), nearest_codes(Z, E))


@pytest.mark.parametrize("budget", [2**23, 100])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_are_drawn_as_often_as_the_softmax_says(monkeypatch, budget, distance):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    codes = gaussian(4, 2, seed=5)
    token = np.array([0.3, -0.2])
    drawn = sample_codes(
        jax.random.key(0),
        jnp.tile(jnp.asarray(token, jnp.float32), (20_000, 1)),
        codes,
        temperature=0.5,
        distance=distance,
    )
    away = np.linalg.norm(token - np.asarray(codes), axis=-1)
    expected = np.exp((np.asarray(codes) @ token if distance == "cosine" else -away) / 0.5)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected / expected.sum(), atol=0.015)


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
