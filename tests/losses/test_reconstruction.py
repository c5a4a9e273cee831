"""Reconstruction losses by their numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.data.arrays import ArrayDataset
from vqjax.data.statistics import pixel_variance
from vqjax.errors import UserError
from vqjax.losses.registry import LOSSES

RANDOM = np.random.default_rng(0)
DATASET = ArrayDataset("random", RANDOM.integers(0, 256, (10, 8, 8, 3), np.uint8), image_size=8)
X, Y = (jnp.asarray(RANDOM.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32) for _ in range(2))


def test_the_error_is_that_of_pixels_or_in_units_of_their_variance():
    error = np.mean((np.asarray(X) - np.asarray(Y)) ** 2)
    plain = LOSSES.build(name="mse", images=DATASET)
    np.testing.assert_allclose(plain(X, Y), error, rtol=1e-6)
    scaled = LOSSES.build(name="mse", images=DATASET, divide_by_variance=True)
    np.testing.assert_allclose(scaled(X, Y), error / pixel_variance(DATASET), rtol=1e-6)


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
    with pytest.raises(UserError, match=message):
        LOSSES.build(name="mse", images=DATASET)(reconstruction, images)
