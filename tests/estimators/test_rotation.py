"""The estimators against dense float64 matrices, built here without any Householder product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.arrays import normal, rotation_matrix
from vqjax import UserError, estimators
from vqjax.estimators import get_estimator, rotation, scaled_rotation
from vqjax.functional import norm_ratio

ROTATIONS = (
    "rotation",
    "rotation_unscaled",
    "rotation_normalized",
    "tangential_rotation",
    "tangential_rotation_rescaled",
)
LINEAR = ["straight_through", *ROTATIONS, "reflection"]
names = pytest.mark.parametrize("name", LINEAR)


def pairs_at(angle, tokens, dim, seed=0):
    """Vectors of length about 3 and codes of length about 2, `angle` apart, in random planes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(tokens, dim, 2)))[0]
    z = 3 * basis[..., 0]
    q = 2 * (np.cos(angle) * basis[..., 0] + np.sin(angle) * basis[..., 1])
    return z.astype(np.float32), q.astype(np.float32)


def reflection_matrix(u, v):
    """The matrix that swaps u and v and leaves what is orthogonal to u - v."""
    normal = u - v
    squared = np.sum(normal**2, -1)[..., None, None]
    return np.eye(u.shape[-1]) - 2 * normal[..., :, None] * normal[..., None, :] / squared


def dense_jacobian(name, z, q):
    z, q = z.astype(np.float64), q.astype(np.float64)
    z_length, q_length = (np.linalg.norm(x, axis=-1)[..., None] for x in (z, q))
    u, v = z / z_length, q / q_length
    scale = (q_length / z_length)[..., None]
    radial = u[..., :, None] * u[..., None, :]
    return {
        "straight_through": lambda: np.broadcast_to(np.eye(z.shape[-1]), radial.shape),
        "rotation": lambda: scale * rotation_matrix(u, v),
        "rotation_unscaled": lambda: rotation_matrix(u, v),
        "rotation_normalized": lambda: scale * rotation_matrix(u, v) @ (np.eye(z.shape[-1]) - radial),
        "tangential_rotation": lambda: rotation_matrix(u, v) @ (np.eye(z.shape[-1]) - radial) + radial,
        "tangential_rotation_rescaled": lambda: scale * rotation_matrix(u, v) @ (np.eye(z.shape[-1]) - radial) + radial,
        "reflection": lambda: scale * reflection_matrix(u, v),
    }[name]()


def apply(matrix, vector):
    return np.einsum("...ij,...j->...i", matrix, vector.astype(np.float64))


@jax.jit(static_argnames="estimator")
def vjp(estimator, z, q, g):
    return jax.vjp(lambda z: get_estimator(estimator)(z, q), z)[1](g)[0]


@jax.jit(static_argnames="estimator")
def jvp(estimator, z, q, t):
    return jax.jvp(lambda z: get_estimator(estimator)(z, q), (z,), (t,))[1]


def angle_between(x, y):
    x, y = (np.asarray(v, np.float64) / np.linalg.norm(np.asarray(v, np.float64), axis=-1)[..., None] for v in (x, y))
    return 2 * np.arctan2(np.linalg.norm(x - y, axis=-1), np.linalg.norm(x + y, axis=-1))


@names
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_value_is_the_code_bit_for_bit(name, dtype):
    # `z + stop_gradient(q - z)` and the rotated vector itself are both wrong in the last bits of most entries.
    z, q = jnp.asarray(normal(64, 5), dtype), jnp.asarray(normal(64, 5, seed=1) * 1e-3, dtype)
    estimator = get_estimator(name)
    for run in (estimator, jax.jit(jax.vmap(estimator))):
        np.testing.assert_array_equal(run(z, q), q)
    value, _ = jax.vjp(estimator, z, q)
    np.testing.assert_array_equal(value, q)


@names
@pytest.mark.parametrize("dim", [2, 8, 256])
def test_both_derivatives_equal_the_dense_matrix(name, dim):
    z, q, g = normal(20, dim), normal(20, dim, seed=1), normal(20, dim, seed=2)
    matrix = dense_jacobian(name, z, q)
    atol = 1e-5 * np.max(np.linalg.norm(q, axis=-1) / np.linalg.norm(z, axis=-1)) * np.max(np.linalg.norm(g, axis=-1))
    np.testing.assert_allclose(vjp(name, z, q, g), apply(np.swapaxes(matrix, -1, -2), g), atol=atol)
    np.testing.assert_allclose(jvp(name, z, q, g), apply(matrix, g), atol=atol)


@names
def test_in_one_dimension_only_the_length_is_left(name):
    z, q = np.array([[2.0], [2.0]], np.float32), np.array([[3.0], [-3.0]], np.float32)
    same, opposite = {
        "straight_through": (1, 1),
        "rotation": (1.5, 1),  # no rotation leads to the opposite side of a line: straight-through
        "rotation_unscaled": (1, 1),
        "rotation_normalized": (0, 1),
        "tangential_rotation": (1, 1),  # nothing is tangential
        "tangential_rotation_rescaled": (1, 1),
        "reflection": (1, -1.5),  # parallel: straight-through
    }[name]
    np.testing.assert_allclose(vjp(name, z, q, np.ones_like(z)), [[same], [opposite]], atol=1e-6)


@pytest.mark.parametrize("name", [*ROTATIONS, "reflection"])
@pytest.mark.parametrize(
    "angle", [1e-6, 1e-4, 1e-3, 0.01, 0.1, 1.0, 1.57, 3.0, np.pi - 0.01, np.pi - 1e-3, np.pi - 1e-6]
)
def test_every_angle(name, angle):
    z, q = pairs_at(angle, 20, 8)
    g = normal(20, 8, seed=2)
    axis_length = 2 * (np.sin(angle / 2) if name == "reflection" else np.cos(angle / 2))
    if axis_length < 1e-5:
        expected, atol = g, 0  # the plane of the map is lost in rounding: straight-through
    else:
        expected = apply(np.swapaxes(dense_jacobian(name, z, q), -1, -2), g)
        atol = 2e-6 / axis_length  # which divides the unit vectors' error of 1e-7
    np.testing.assert_allclose(vjp(name, z, q, g), expected, atol=atol)


@pytest.mark.parametrize("dim", [2, 8, 256])
@pytest.mark.parametrize("angle", [1e-3, 1.0, 3.0])
def test_the_gradient_keeps_its_angle_to_the_vector_it_belongs_to(dim, angle):
    # Fifty et al., Section 4.3: what the rotation trick is for.
    z, q = pairs_at(angle, 20, dim)
    g = normal(20, dim, seed=3)
    gradient = vjp("rotation", z, q, g)
    np.testing.assert_allclose(angle_between(gradient, z), angle_between(g, q), atol=2e-5)
    ratio = np.linalg.norm(q, axis=-1) / np.linalg.norm(z, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=-1), ratio * np.linalg.norm(g, axis=-1), rtol=1e-5)


@pytest.mark.parametrize(("name", "determinant"), [("rotation", 1), ("rotation_unscaled", 1), ("reflection", -1)])
def test_rotations_turn_and_the_reflection_mirrors(name, determinant):
    z, q = normal(4, seed=4), normal(4, seed=5)
    jacobian = np.asarray(jax.jacobian(get_estimator(name))(jnp.asarray(z), jnp.asarray(q)), np.float64)
    scale = 1 if name == "rotation_unscaled" else np.linalg.norm(q) / np.linalg.norm(z)
    np.testing.assert_allclose(np.linalg.det(jacobian / scale), determinant, atol=1e-5)
    np.testing.assert_allclose(jacobian @ jacobian.T / scale**2, np.eye(4), atol=1e-5)


@pytest.mark.usefixtures("as_users_run_it")
def test_codes_of_another_shape_are_refused():
    # Without a gradient the value was `q`, of any shape.
    with pytest.raises(UserError, match=r"q must have the shape of z, \(2, 3\), got \(3,\)"):
        rotation(jnp.ones((2, 3)), jnp.ones(3))


def test_the_rotation_takes_z_to_q():
    z, q = normal(20, 8), normal(20, 8, seed=1)
    np.testing.assert_allclose(jvp("rotation", z, q, z), q, atol=2e-6)
    np.testing.assert_allclose(jvp("reflection", z, q, z), q, atol=2e-6)


def test_the_normalized_rotation_has_no_radial_part():
    # The official VQGAN code differentiates z/|z|: its gradient never changes the length of z.
    z, q, g = normal(20, 8), normal(20, 8, seed=1), normal(20, 8, seed=2)
    assert np.max(np.abs(np.sum(np.asarray(vjp("rotation_normalized", z, q, g)) * z, -1))) < 1e-5
    assert np.max(np.abs(np.sum(np.asarray(vjp("rotation", z, q, g)) * z, -1))) > 0.1


@pytest.mark.parametrize("name", ["tangential_rotation", "tangential_rotation_rescaled"])
def test_the_radial_part_is_that_of_straight_through(name):
    z, q, g = normal(20, 8), normal(20, 8, seed=1), normal(20, 8, seed=2)
    np.testing.assert_allclose(np.sum(vjp(name, z, q, g) * z, -1), np.sum(g * z, -1), rtol=1e-4, atol=1e-5)


def test_maps_of_the_latent_to_its_code_have_the_radial_part_of_the_code():
    # What takes z to its code passes <z, gradient> = <q, g>: no loss of quantization pushes the latent outward.
    z, q, g = normal(20, 8), normal(20, 8, seed=1), normal(20, 8, seed=2)
    of_code = np.sum(q * g, -1)
    for name in ("rotation", "reflection"):
        np.testing.assert_allclose(np.sum(vjp(name, z, q, g) * z, -1), of_code, rtol=1e-4, atol=1e-5)
    gamma, ratio = 3.0, np.linalg.norm(q, axis=-1) / np.linalg.norm(z, axis=-1)
    radial = np.sum(vjp(scaled_rotation(gamma), z, q, g) * z, -1)
    np.testing.assert_allclose(radial, gamma / ratio * of_code, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_the_rotation_about_the_mean_is_that_of_centered_vectors(masked):
    z, q, g = jnp.asarray(normal(20, 8)) + 5, jnp.asarray(normal(20, 8, seed=1)) - 3, normal(20, 8, seed=2)
    mask = np.arange(20) < 15 if masked else np.ones(20, bool)
    mask = jnp.asarray(mask)
    value, pullback = jax.vjp(lambda z: estimators.rotation_about_mean(z, q, mask=mask if masked else None), z)
    np.testing.assert_array_equal(value, q)
    expected = apply(
        np.swapaxes(
            dense_jacobian("rotation", *(np.asarray(x - jnp.mean(x[mask], 0, keepdims=True)) for x in (z, q))), -1, -2
        ),
        g,
    )
    np.testing.assert_allclose(pullback(g)[0], expected, atol=1e-4)


def test_the_mean_is_that_of_all_devices():
    z, q = jnp.asarray(normal(2, 10, 8)) + jnp.array([[[3.0]], [[-2.0]]]), jnp.asarray(normal(2, 10, 8, seed=1))

    def gradient(z, q, axis_name=None):
        return jax.grad(lambda z: jnp.sum(jnp.sin(estimators.rotation_about_mean(z, q, axis_name=axis_name))))(z)

    divided = jax.vmap(lambda z, q: gradient(z, q, "devices"), axis_name="devices")(z, q)
    np.testing.assert_allclose(divided, gradient(z, q), atol=1e-5)


@names
def test_no_gradient_reaches_the_code(name):
    z, q = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=1))
    assert not np.any(jax.grad(lambda q: jnp.sum(get_estimator(name)(z, q) ** 2))(q))


@names
def test_the_map_is_held_constant(name):
    # The second derivative of a constant linear map is zero; z also enters the map's coefficients.
    z, q, g = (jnp.asarray(normal(3, seed=seed)) for seed in range(3))
    second = jax.hessian(lambda z: jnp.dot(get_estimator(name)(z, q), g))(z)
    assert not np.any(second)


def test_the_general_family_contains_the_named_rotations():
    z, q, g = normal(20, 8), normal(20, 8, seed=1), normal(20, 8, seed=2)
    rotated = np.asarray(vjp("rotation_unscaled", z, q, g))
    np.testing.assert_array_equal(vjp(scaled_rotation(norm_ratio), z, q, g), vjp("rotation", z, q, g))
    np.testing.assert_array_equal(vjp(scaled_rotation(1.0), z, q, g), rotated)

    def inverse_distance(z, q):  # Fifty et al., Appendix A.9.2
        return 1 / (8 * jnp.sum((q - z) ** 2, axis=-1, keepdims=True))

    expected = rotated / (8 * np.sum((q - z) ** 2, -1, keepdims=True))
    np.testing.assert_allclose(vjp(scaled_rotation(inverse_distance), z, q, g), expected, rtol=1e-5)


HUGE, TINY = 1e30, 1e-30
STRAIGHT_THROUGH = {
    "z is zero": ([0, 0, 0], [1, 2, 3], (*ROTATIONS, "reflection")),
    "q is zero": ([1, 2, 3], [0, 0, 0], (*ROTATIONS, "reflection")),
    "both are zero": ([0, 0, 0], [0, 0, 0], (*ROTATIONS, "reflection")),
    "z is too short": ([TINY, TINY, 0], [1, 2, 3], (*ROTATIONS, "reflection")),
    "antipodal": ([1, 2, 3], [-2, -4, -6], ROTATIONS),
    "huge and antipodal": ([HUGE, 0, 0], [-1, 0, 0], ROTATIONS),
    "parallel": ([1, 2, 3], [2, 4, 6], ("reflection",)),
    "equal": ([1, 2, 3], [1, 2, 3], ("reflection",)),
    "huge": ([HUGE, HUGE, 0], [1, 2, 3], ()),
    "huge code": ([1, 2, 3], [HUGE, 0, HUGE], ()),
    "just long enough": ([1e-5, 0, 0], [0, 2e-6, 0], ()),
}


@pytest.mark.parametrize("case", STRAIGHT_THROUGH)
@pytest.mark.parametrize("name", [*ROTATIONS, "reflection"])
def test_degenerate_pairs_pass_the_gradient_unchanged_and_finite(case, name):
    z, q, degenerate_for = STRAIGHT_THROUGH[case]
    g = np.array([0.5, -1.0, 2.0], np.float32)
    z, q = (np.array(x, np.float32) for x in (z, q))
    gradient = np.asarray(vjp(name, z, q, g))
    assert np.all(np.isfinite(gradient))
    if name in degenerate_for:
        np.testing.assert_array_equal(gradient, g)
    else:
        expected = apply(dense_jacobian(name, z, q).T, g)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 * np.linalg.norm(expected))


# One shape, so that the examples share their compiled functions.
bounded = st.floats(-(2**50), 2**50, width=32, allow_subnormal=False)
vectors = st.lists(st.lists(bounded, min_size=3, max_size=3), min_size=2, max_size=2)


@settings(max_examples=50)
@given(vectors)
def test_any_pair_has_a_finite_gradient_no_longer_than_the_ratio_of_lengths(pair):
    z, q = np.array(pair, np.float32)
    lengths = np.linalg.norm(np.array([z, q], np.float64), axis=-1)
    ratio = max(1, lengths[1] / lengths[0] if lengths[0] > 0 else 1)
    g = np.array([0.6, 0.0, -0.8], np.float32)
    for name in LINEAR:
        # The radial and the tangential part of these are orthogonal, and each at most so long.
        parts = np.sqrt(2) if name.startswith("tangential") else 1
        assert np.linalg.norm(np.asarray(vjp(name, z, q, g), np.float64)) <= 1.001 * parts * ratio


@names
@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_short_types_lose_only_their_own_rounding(name, dtype, precision):
    # In the input's own arithmetic the peers are off by 9e-2 in bfloat16 (1e-2 in float16).
    z, q, g = (jnp.asarray(normal(50, 64, seed=seed), dtype) for seed in range(3))
    gradient = vjp(name, z, q, g)
    assert gradient.dtype == dtype
    z, q, g = (np.asarray(x, np.float32) for x in (z, q, g))
    expected = apply(np.swapaxes(dense_jacobian(name, z, q), -1, -2), g)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, rtol=1.1 * precision, atol=1e-5)


def test_float32_vectors_and_bfloat16_codes():
    # The cosine quantizer normalizes in float32 and returns codes of the input's dtype.
    z, q = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=1), jnp.bfloat16)
    value, pullback = jax.vjp(lambda z: estimators.rotation(z, q), z)
    (gradient,) = pullback(jnp.ones_like(q))
    assert (value.dtype, gradient.dtype) == (jnp.bfloat16, jnp.float32)
    expected = apply(
        np.swapaxes(dense_jacobian("rotation", np.asarray(z), np.asarray(q, np.float32)), -1, -2), np.ones((5, 3))
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@names
def test_transformations_compose(name):
    z, q = jnp.asarray(normal(2, 5, 3)), jnp.asarray(normal(2, 5, 3, seed=1))

    def gradient(z, q):
        return jax.grad(lambda z: jnp.sum(get_estimator(name)(z, q) ** 3))(z)

    expected = gradient(z, q)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(gradient)))(z, q), expected, atol=1e-5)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(lambda z: jnp.sum(get_estimator(name)(z, q) ** 3)))(z), expected)


def test_the_norm_ratio_of_vectors_without_a_length_is_one():
    z = jnp.array([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    q = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert norm_ratio(z, q).tolist() == [[0.5], [1.0], [1.0]]
