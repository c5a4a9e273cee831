import pytest

from studies.common.document import fill, mean_and_deviation, skeleton, with_spread
from vqjax.errors import UserError

TEXT = "# Title\n<!-- generated: a -->\n<!-- end -->\nBy hand \\1.\n<!-- generated: b -->\nold\n<!-- end -->\n"


def test_only_the_generated_parts_change():
    filled = fill(TEXT, {"a": r"new \1 \g<0>", "b": "x\n\ny"})
    assert filled == (
        "# Title\n<!-- generated: a -->\nnew \\1 \\g<0>\n<!-- end -->\nBy hand \\1.\n"
        "<!-- generated: b -->\nx\n\ny\n<!-- end -->\n"
    )
    assert fill(filled, {"a": r"new \1 \g<0>", "b": "x\n\ny"}) == filled


def test_a_missing_part_is_named():
    with pytest.raises(UserError, match="has no part 'c'"):
        fill(TEXT, {"c": "new"})


def test_a_skeleton_can_be_filled():
    assert "<!-- generated: b -->\nnumbers\n<!-- end -->" in fill(skeleton("T", ["a", "b"]), {"b": "numbers"})


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
