import pytest

from studies.common.spread import mean_and_deviation, with_spread


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([23.5], "23.5"),
        ([23.5, None], "23.5"),
        ([2.0, 2.0], "2 ± 0"),
        ([0.0, 0.0], "0 ± 0"),
        ([100, 300], "200 ± 141"),
        ([1.0, 2.0, 3.0], "2.0 ± 1.0"),
        ([0.00011, 0.00013], "1.20e-04 ± 1.4e-05"),
        ([22.85, 22.8500001], "22.85 ± 0.00"),
        ([], "–"),
    ],
)
def test_text_has_as_many_digits_as_the_spread_allows(values, text):
    assert with_spread(values) == text


def test_the_deviation_is_that_of_a_sample():
    assert mean_and_deviation([0.0, 2.0]) == (1.0, pytest.approx(2**0.5))
