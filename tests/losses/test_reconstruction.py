"""Reconstruction losses by their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.data.arrays import ArrayDataset
from vqjax.data.statistics import pixel_variance
from vqjax.errors import UserError
from vqjax.losses.reconstruction import ReconstructionLoss, logit_laplace
from vqjax.losses.registry import LOSSES

RANDOM = np.random.default_rng(0)
DATASET = ArrayDataset("random", RANDOM.integers(0, 256, (10, 8, 8, 3), np.uint8), image_size=8)
RECONSTRUCTION = [name for name, loss in LOSSES.items() if issubclass(loss, ReconstructionLoss)]
# What a loss cannot do without.
NEEDED = {"sum": {"mse": 1.0}}
X, Y = (jnp.asarray(RANDOM.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32) for _ in range(2))


def test_the_error_is_that_of_pixels_or_in_units_of_their_variance():
    error = np.mean((np.asarray(X) - np.asarray(Y)) ** 2)
    plain = LOSSES.build(name="mse", images=DATASET)
    np.testing.assert_allclose(plain(X, Y), error, rtol=1e-6)
    scaled = LOSSES.build(name="mse", images=DATASET, divide_by_variance=True)
    np.testing.assert_allclose(scaled(X, Y), error / pixel_variance(DATASET), rtol=1e-6)


def test_the_absolute_error_is_that_of_numpy_and_every_loss_has_a_weight():
    error = np.mean(np.abs(np.asarray(X) - np.asarray(Y)))
    np.testing.assert_allclose(LOSSES.build(name="l1", images=DATASET)(X, Y), error, rtol=1e-6)
    for name in RECONSTRUCTION:
        needed = NEEDED.get(name, {})
        plain, heavy = (LOSSES.build(name=name, images=DATASET, weight=weight, **needed) for weight in (1.0, 0.25))
        np.testing.assert_allclose(heavy(X, Y), plain(X, Y) / 4, rtol=1e-6)


def test_the_logit_laplace_density_integrates_to_one():
    """Over (0, 1), of which pixels take [0.1, 0.9]."""
    pixels = jnp.linspace(-1.2499, 1.2499, 400_001)
    for mean, log_scale in ((0.0, 0.0), (1.5, -0.7), (-2.0, 0.3)):
        parameters = (jnp.full_like(pixels, value) for value in (mean, log_scale))
        density = np.exp(-np.asarray(logit_laplace(*parameters, pixels)))
        np.testing.assert_allclose(np.sum(density) * 0.4 * 2.4998 / 400_000, 1, atol=3e-3)


def test_the_logit_laplace_loss_is_the_formula_of_dall_e():
    """The sigmoid of its mean is where the reconstruction lies."""
    x, y = (0.4 * (np.asarray(pixels, np.float64) + 1) + 0.1 for pixels in (X, Y))
    logit_x, logit_y = (np.log(p / (1 - p)) for p in (x, y))
    expected = np.mean(np.log(2 * y * (1 - y)) + np.abs(logit_y - logit_x))
    np.testing.assert_allclose(LOSSES.build(name="logit_laplace", images=DATASET)(X, Y), expected, rtol=1e-5)


def test_reconstructions_beyond_the_pixels_are_pulled_back():
    """The decoder of DALL-E outputs the mean; ours outputs pixels, whose logit is infinite at 1.25."""
    loss = LOSSES.build(name="logit_laplace", images=DATASET)
    white = jnp.ones((1, 1, 1, 1))
    slopes = [float(jax.grad(loss)(jnp.full_like(white, value), white).squeeze()) for value in (0.999, 1.001, 1.25, 30)]
    np.testing.assert_allclose(slopes, [-0.4 / 0.09, *[0.4 / 0.09] * 3], rtol=1e-2)


def test_a_sum_is_that_of_its_terms():
    weights = {"l1": 0.3, "mse": 1.0, "logit_laplace": 0.1}
    total = sum(weight * LOSSES.build(name=name, images=DATASET)(X, Y) for name, weight in weights.items())
    np.testing.assert_allclose(LOSSES.build(name="sum", images=DATASET, **weights)(X, Y), total, rtol=1e-6)
    alone = LOSSES.build(name="sum", images=DATASET, logit_laplace=2.0)
    np.testing.assert_allclose(
        alone(X, Y), LOSSES.build(name="logit_laplace", images=DATASET, weight=2.0)(X, Y), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ({}, r"^mse must be above 0 if l1 and logit_laplace are 0, got 0.0; give at least one weight\.$"),
        ({"mse": -1.0}, r"^mse must be a finite number of at least 0, got -1.0\.$"),
        ({"l1": np.inf}, r"^l1 must be a finite number, got inf\.$"),
    ],
)
def test_a_sum_without_a_term_is_refused(weights, error):
    with pytest.raises(UserError, match=error):
        LOSSES.build(name="sum", images=DATASET, **weights)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_a_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(UserError, match=r"^weight must be a finite number( above 0)?, got "):
        LOSSES.build(name="l1", images=DATASET, weight=weight)


def test_images_are_read_only_for_what_needs_them():
    """And once: a run that is evaluated alone reads none."""

    class Unreadable:
        name, class_names = "unreadable", None

        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("read")

    assert float(LOSSES.build(name="mse", images=Unreadable())(X, X)) == 0
    loss = LOSSES.build(name="mse", images=Unreadable(), divide_by_variance=True)
    with pytest.raises(AssertionError, match="read"):
        loss(X, X)


def test_pixels_without_variance_are_refused():
    black = ArrayDataset("black", np.zeros((2, 8, 8, 3), np.uint8), image_size=8)
    with pytest.raises(UserError, match="divide_by_variance must be False for images without variance"):
        LOSSES.build(name="mse", images=black, divide_by_variance=True)(X, Y)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("reconstruction", "images", "message"),
    [
        (X[:1], Y, r"`reconstruction` must have the shape of the images, got \(1, 8, 8, 3\)"),
        (X[..., :1], Y, r"got \(2, 8, 8, 1\) for \(2, 8, 8, 3\)"),
        (X, jnp.zeros(Y.shape, jnp.uint8), r"`images` must be floats in \[-1, 1\], got uint8"),
    ],
)
def test_pairs_that_are_not_images_of_one_shape_are_refused(reconstruction, images, message):
    """Bug: a single reconstruction was compared with all images, and bytes with numbers in [-1, 1]."""
    for name in RECONSTRUCTION:
        with pytest.raises(UserError, match=message):
            LOSSES.build(name=name, images=DATASET, **NEEDED.get(name, {}))(reconstruction, images)
