import jax
import jax.numpy as jnp
import numpy as np
import pytest

from studies.choosing.runs import PLANE_ESTIMATORS
from studies.choosing.surfaces import SURFACES, fixed_codes, grid_points, measure_field, reaching_gradient
from vqjax.functional.search import nearest_codes

pytestmark = pytest.mark.full

KEY = jax.random.key(0)
Z, CODES = grid_points(2.0, side=6), fixed_codes(2.0)


def own_gradient(surface, points):
    return jax.grad(lambda p: jnp.sum(SURFACES[surface].value(p)))(points)


@pytest.mark.parametrize("surface", SURFACES)
def test_straight_through_hands_on_the_gradient_at_the_code(surface):
    gradient = reaching_gradient("straight_through", SURFACES[surface].value, Z, CODES, KEY)
    np.testing.assert_allclose(gradient, own_gradient(surface, CODES[nearest_codes(Z, CODES)]), rtol=1e-6)


@pytest.mark.parametrize("surface", SURFACES)
def test_the_exact_gradient_is_the_one_at_the_point(surface):
    gradient = reaching_gradient("exact", SURFACES[surface].value, Z, CODES, KEY)
    np.testing.assert_allclose(gradient, own_gradient(surface, Z), rtol=1e-6)


def test_the_hessian_correction_is_exact_on_a_quadratic():
    gradient = reaching_gradient("hessian", SURFACES["quadratic"].value, Z, CODES, KEY)
    np.testing.assert_allclose(gradient, own_gradient("quadratic", Z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLANE_ESTIMATORS)
def test_every_estimator_gives_finite_gradients(name):
    assert np.isfinite(reaching_gradient(name, SURFACES["logarithm"].value, Z, CODES, KEY)).all()


def test_no_point_of_the_grid_lies_where_the_logarithm_has_no_gradient():
    field = measure_field("exact", SURFACES["logarithm"])
    assert np.isfinite(field["gradient"]).all()
    np.testing.assert_allclose((field["cosine"], field["descends"]), 1.0, rtol=1e-5)


def test_a_gradient_without_direction_counts_as_none():
    # Normalized rotation has no radial gradient, and the quadratic has no other.
    assert float(measure_field("rotation_normalized", SURFACES["quadratic"])["descends"]) == 0.0
