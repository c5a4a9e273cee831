import jax
import jax.numpy as jnp
import numpy as np
import pytest

from studies.choosing.himmelblau import MINIMA, Position, Setting, himmelblau, measure_descent, start, step
from vqjax.functional.codebook import init_codebook

SMALL = Setting(steps=4, num_points=8, num_codes=4, seeds=2, snapshot_every=2)


def test_the_minima_are_minima():
    minima = jnp.asarray(MINIMA)
    np.testing.assert_allclose(himmelblau(minima), 0.0, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda p: jnp.sum(himmelblau(p)))(minima), 0.0, atol=2e-3)


@pytest.mark.full
def test_points_on_their_codes_descend_as_without_quantization():
    points = start(0, SMALL).points
    setting = SMALL._replace(num_codes=len(points))
    moved = step("straight_through", Position(points, init_codebook(points)), jax.random.key(0), setting)
    expected = points - setting.learning_rate * jax.grad(lambda p: jnp.sum(himmelblau(p)))(points)
    np.testing.assert_allclose(moved.points, expected, rtol=1e-6)
    np.testing.assert_allclose(moved.codebook.codes, points, rtol=1e-6)


@pytest.mark.full
def test_every_estimator_starts_from_the_same_points_and_codes():
    one, other = (measure_descent(name, SMALL) for name in ("straight_through", "exact"))
    np.testing.assert_array_equal(one["points"][0], other["points"][0])
    np.testing.assert_array_equal(one["codes"][0], other["codes"][0])
    assert not np.array_equal(one["points"][-1], other["points"][-1])


@pytest.mark.full
def test_what_is_stored():
    measured = measure_descent("straight_through", SMALL)
    assert measured["points"].shape == (3, 8, 2)
    assert measured["codes"].shape == (3, 4, 2)
    for name in ("value_at_points", "value_at_codes", "quantization_error", "codes_used"):
        assert measured[name].shape == (2,)
    np.testing.assert_allclose(measured["value_at_points"][0], jnp.mean(himmelblau(measured["points"][-1])), rtol=1e-5)
