"""Digits of indices."""

import math

import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.functional import from_digits, to_digits


@pytest.mark.parametrize("sizes", [(7,), (2, 3, 5), (512, 512), (64, 4096)])
def test_digits_are_those_of_numpy_and_give_the_index_again(sizes):
    indices = np.random.default_rng(0).integers(0, math.prod(sizes), (20, 3))
    digits = to_digits(indices, sizes)
    np.testing.assert_array_equal(digits, np.stack(np.unravel_index(indices, sizes), axis=-1))
    np.testing.assert_array_equal(from_digits(digits, sizes), indices)


def test_as_many_digits_as_sizes():
    with pytest.raises(UserError, match=r"digits must be 2 along the last axis for sizes=\(4, 4\), got shape \[5, 3\]"):
        from_digits(np.zeros((5, 3), int), (4, 4))
