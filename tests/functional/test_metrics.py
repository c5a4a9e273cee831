"""The metrics against NumPy and their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.functional import metrics
from vqjax.functional.metrics import geometry_statistics, index_statistics, masked_mean, perplexity, usage


def test_perplexity_is_the_exponential_of_the_entropy():
    counts = np.array([3.0, 0.0, 1.0, 12.0])
    share = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(perplexity(jnp.asarray(counts)), np.exp(-np.sum(share * np.log(share))), rtol=1e-6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([5.0] * 8, 8), ([0.1] * 3, 3), ([7.0, 0.0, 0.0], 1), ([0.0, 0.0], 1), ([1e30, 1e30, 0.0], 2)],
)
def test_perplexity_at_its_bounds(counts, expected):
    np.testing.assert_allclose(perplexity(jnp.array(counts)), expected, rtol=1e-6)


def test_perplexity_of_unused_codes_has_no_epsilon():
    # log(p + 1e-10) costs nothing for 10 codes and is wrong by 4e-5 for a million.
    counts = jnp.ones(2**20)
    np.testing.assert_allclose(perplexity(counts), 2**20, rtol=5e-6)


def test_usage_counts_codes_not_tokens():
    assert float(usage(jnp.array([100.0, 0.0, 1.0, 0.0, 0.0]))) == np.float32(0.4)


@pytest.mark.parametrize("histogram", [True, False])
def test_indices_without_a_code_do_not_count(monkeypatch, histogram):
    """-1 was the last code."""
    monkeypatch.setattr(metrics, "_MAX_HISTOGRAM", 100 if histogram else 1)
    statistics = index_statistics(jnp.array([-1, -1, 0, 1, 4, 9]), 4)
    np.testing.assert_allclose(statistics["perplexity"], 2, rtol=1e-6)
    assert float(statistics["usage"]) == 0.5


def test_the_masked_mean_ignores_masked_values_even_if_they_are_nan():
    values, mask = jnp.array([1.0, jnp.nan, 5.0, jnp.inf]), jnp.array([True, False, True, False])
    value, gradient = jax.value_and_grad(lambda v: masked_mean(v, mask))(values)
    assert value == 3
    assert gradient.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_the_mean_of_no_values_is_zero_and_so_is_its_gradient():
    value, gradient = jax.value_and_grad(lambda v: masked_mean(v, jnp.zeros(3, bool)))(jnp.ones(3))
    assert value == 0
    assert gradient.tolist() == [0, 0, 0]


def test_the_mean_over_a_mapped_axis_weighs_tokens_not_devices():
    values = jnp.arange(8.0).reshape(4, 2)
    mask = jnp.array([[True, True], [True, False], [False, False], [False, False]])
    parts = jax.vmap(lambda v, m: masked_mean(v, m, "data"), axis_name="data")(values, mask)
    assert float(jnp.mean(parts)) == 1.0


@pytest.mark.parametrize("angle", [1e-4, 0.01, 1.0, np.pi / 2, 3.0, np.pi - 1e-3])
def test_angles_keep_their_digits_at_both_ends(angle):
    # The arc cosine of a float32 inner product returns 0 or 3e-4 for the first of these.
    z = jnp.array([[3.0, 0.0]])
    q = jnp.asarray(2 * np.array([[np.cos(angle), np.sin(angle)]]), jnp.float32)
    metrics = geometry_statistics(z, q)
    np.testing.assert_allclose(metrics["angle"], angle, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["norm_ratio"], 2 / 3, rtol=1e-6)


def test_geometry_is_the_mean_over_unmasked_tokens():
    rng = np.random.default_rng(0)
    z, q = rng.normal(size=(2, 30, 5))
    mask = rng.uniform(size=30) < 0.5
    lengths = np.linalg.norm(z, axis=1), np.linalg.norm(q, axis=1)
    angles = np.arccos(np.sum(z * q, axis=1) / (lengths[0] * lengths[1]))
    z = np.where(mask[:, None], z, np.nan)
    metrics = geometry_statistics(jnp.asarray(z, jnp.float32), jnp.asarray(q, jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(metrics["angle"], angles[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["norm_ratio"], (lengths[1] / lengths[0])[mask].mean(), rtol=1e-5)
    rms = [np.sqrt(np.mean(np.square(x[mask]))) for x in (z, q)]
    np.testing.assert_allclose([metrics["rms_latents"], metrics["rms_codes"]], rms, rtol=1e-5)


def test_vectors_without_a_direction_do_not_make_the_means_nan():
    metrics = geometry_statistics(jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    assert float(metrics["norm_ratio"]) == 1
    assert 0 <= float(metrics["angle"]) <= np.pi


def test_metrics_have_no_gradient():
    gradient = jax.grad(lambda z: sum(geometry_statistics(z, jnp.ones((2, 3))).values()))(jnp.ones((2, 3)))
    assert not np.any(gradient)
