import pytest

from studies.common.document import fill, skeleton, table
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


def test_cells_may_hold_the_column_separator():
    assert table(["|q|"], [["1"]]).splitlines()[0] == r"| \|q\| |"
