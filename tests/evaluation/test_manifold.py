"""KID, precision and recall, density and coverage by definition, and on sets whose answer is known."""

import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.evaluation import manifold
from vqjax.evaluation.manifold import kernel_distance, precision_and_recall

RNG = np.random.default_rng(0)
REAL, GENERATED = RNG.normal(size=(60, 3)), 0.4 + 0.7 * RNG.normal(size=(40, 3))


def test_the_kernel_distance_is_that_of_its_definition():
    """Of all images at once: the sum over pairs of different images."""

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    x, y = REAL[:40], GENERATED
    pairs = [(i, j) for i in range(40) for j in range(40)]
    within = sum(np.mean([k(z[i], z[j]) for i, j in pairs if i != j]) for z in (x, y))
    expected = within - 2 * np.mean([k(x[i], y[j]) for i, j in pairs])
    measured = kernel_distance(x, y, subsets=3, subset_size=40)
    np.testing.assert_allclose(measured.mean, expected, rtol=1e-10)
    np.testing.assert_allclose(measured.deviation, 0, atol=1e-10)


def test_the_kernel_distance_has_no_bias():
    """Sets of one distribution: zero within the error of the mean."""
    values = [kernel_distance(*RNG.normal(size=(2, 30, 4)), subsets=1, subset_size=30).mean for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


@pytest.mark.parametrize("neighbors", [1, 3, 5])
def test_the_neighborhoods_are_those_of_their_definition(neighbors, monkeypatch):
    monkeypatch.setattr(manifold, "_DISTANCES_AT_ONCE", 500)  # several parts

    def radius(z, i):
        return sorted(np.linalg.norm(z - z[i], axis=1))[neighbors]

    distances = np.linalg.norm(GENERATED[:, None] - REAL, axis=-1)
    in_real = distances <= np.array([radius(REAL, i) for i in range(60)])
    in_generated = distances <= np.array([radius(GENERATED, i) for i in range(40)])[:, None]
    measured = precision_and_recall(REAL, GENERATED, neighbors=neighbors)
    expected = in_real.any(axis=1).mean(), in_generated.any(axis=0).mean()
    expected += in_real.sum(axis=1).mean() / neighbors, in_real.any(axis=0).mean()
    to_next = np.array([sorted(np.linalg.norm(REAL - x, axis=1))[1] for x in REAL])
    expected += (np.mean(distances.min(axis=1) >= to_next[distances.argmin(axis=1)]),)
    np.testing.assert_allclose(measured, expected)


def test_what_is_generated_from_one_mode_is_precise_and_recalls_little():
    both = np.concatenate([RNG.normal(size=(200, 2)), 20 + RNG.normal(size=(200, 2))])
    measured = precision_and_recall(both, RNG.normal(size=(400, 2)))
    assert measured.precision > 0.9
    assert 0.4 < measured.recall < 0.55
    assert 0.4 < measured.coverage < 0.55


def test_copies_are_not_authentic():
    train, held_out = RNG.normal(size=(2, 200, 8))
    copies = train[:100] + 1e-3 * RNG.normal(size=(100, 8))
    half = precision_and_recall(train, np.concatenate([copies, held_out[:100]])).authenticity
    assert half == pytest.approx(precision_and_recall(train, held_out[:100]).authenticity / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_distance(REAL, GENERATED, subset_size=41), "subset_size must be from 2 to 40, the images of"),
        (lambda: kernel_distance(REAL, GENERATED, subset_size=1), "subset_size must be from 2 to 40, .*, got 1"),
        (
            lambda: precision_and_recall(REAL, GENERATED[:3]),
            "neighbors must be from 1 to 2, one less than .*, got 3",
        ),
        (lambda: precision_and_recall(REAL, GENERATED[:, :2]), "features of one network, got 3 and 2 features"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
