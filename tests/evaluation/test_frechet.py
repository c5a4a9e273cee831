"""The Fréchet distance and the Inception score by closed forms."""

import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score

RNG = np.random.default_rng(0)


def features(count=300, dim=12):
    return RNG.normal(size=(count, dim)) @ RNG.normal(size=(dim, dim)) + RNG.normal(size=dim)


def test_gaussians_have_the_distance_of_their_moments():
    """Commuting covariances, of which the trace of the root is the sum of products of standard deviations."""
    basis, _ = np.linalg.qr(RNG.normal(size=(8, 8)))
    deviations, means = RNG.uniform(0.1, 2, (2, 8)), RNG.normal(size=(2, 8))
    a, b = (
        Moments(101, mean, 100 * (basis * deviation**2) @ basis.T)
        for mean, deviation in zip(means, deviations, strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)


@pytest.mark.parametrize(("count", "dim"), [(300, 12), (10, 64)])
def test_a_set_has_no_distance_from_itself(count, dim):
    """Also where its covariance is singular."""
    moments = Moments.of(1000 * features(count, dim))
    assert frechet_distance(moments, moments) < 1e-6 * np.trace(moments.covariance) ** 0.5


def test_singular_covariances_have_an_exact_distance():
    """Ten images each, in planes that are orthogonal to each other, share nothing: traces add up."""
    x, y = np.zeros((2, 10, 64))
    x[:, :9], y[:, 9:18] = RNG.normal(size=(2, 10, 9))
    a, b = Moments.of(x), Moments.of(y)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_moments_do_not_depend_on_the_parts_and_keep_their_digits():
    """A sum of squares would lose all digits of this covariance."""
    x = 1e6 + features()
    whole, parts = Moments.of(x), Moments.of(x[:7]).including(x[7:8]).including(x[8:])
    np.testing.assert_allclose(parts.mean, x.mean(axis=0), rtol=1e-14)
    for moments in (whole, parts):
        np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_what_has_no_distance_is_refused():
    x = features(5, 3)
    with pytest.raises(UserError, match="needs at least 2 images on each side, got 1"):
        frechet_distance(Moments.of(x), Moments.of(x[:1]))
    with pytest.raises(UserError, match="features of one network, got 3 and 2 features"):
        frechet_distance(Moments.of(x), Moments.of(x[:, :2]))
    x[3, 1] = np.nan
    with pytest.raises(UserError, match="must be finite, got others in image 3 of 5"):
        Moments.of(x)


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart():
    certain = 50.0 * np.eye(5)[np.arange(100) % 5]
    np.testing.assert_allclose(inception_score(certain, splits=1), (5, 0), atol=1e-9)
    np.testing.assert_allclose(inception_score(np.zeros((100, 5)), splits=10), (1, 0), atol=1e-9)
    # Probabilities that underflow are NaN in the original.
    np.testing.assert_allclose(inception_score(1e4 * certain, splits=1), (5, 0), atol=1e-9)
    with pytest.raises(UserError, match="splits must be from 1 to 100, the number of images, got 101"):
        inception_score(certain, splits=101)


def test_the_score_is_the_mean_over_parts_of_shuffled_images():
    logits = RNG.normal(size=(103, 7))
    order = np.random.RandomState(2020).permutation(103)
    scores = []
    for part in range(4):
        p = np.exp(logits[order][part * 103 // 4 : (part + 1) * 103 // 4])
        p /= p.sum(axis=1, keepdims=True)
        scores.append(np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1))))
    np.testing.assert_allclose(inception_score(logits, splits=4), (np.mean(scores), np.std(scores)), rtol=1e-10)
