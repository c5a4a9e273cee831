import numpy as np
import pytest

from vqjax.data import batch_indices
from vqjax.errors import UserError


def epoch(seed, number, batch_size, num_images):
    steps = num_images // batch_size
    return np.concatenate([batch_indices(seed, number * steps + i, batch_size, num_images) for i in range(steps)])


def test_an_epoch_visits_every_image_once():
    assert sorted(epoch(3, 2, 5, 20)) == list(range(20))


def test_a_partial_last_batch_is_dropped_and_no_image_comes_twice():
    indices = epoch(0, 0, 8, 21)
    assert len(indices) == 16
    assert len(set(indices.tolist())) == 16


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {tuple(epoch(seed, number, 5, 20).tolist()) for seed in (0, 1) for number in (0, 1, 2)}
    assert len(orders) == 6


def test_the_order_depends_on_the_arguments_alone_not_on_what_was_asked_before():
    late_first = batch_indices(7, 1000, 4, 50).copy()
    for step in range(30):
        batch_indices(7, step, 4, 50)
    np.testing.assert_array_equal(batch_indices(7, 1000, 4, 50), late_first)


def test_the_order_never_changes_between_versions():
    # A checkpoint resumes with the order it began with only if these numbers stay.
    assert batch_indices(42, 3, 4, 10).tolist() == [8, 3, 5, 0]


def test_negative_seeds_are_allowed():
    assert sorted(epoch(-1, 0, 5, 10)) == list(range(10))


def test_results_cannot_be_written_to_since_they_are_cached():
    with pytest.raises(ValueError, match="read-only"):
        batch_indices(0, 0, 2, 4)[0] = 1


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_size must be at most 10, the number of training images, got 11"):
        batch_indices(0, 0, 11, 10)
