import functools
import math
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from studies.common.records import Record, describe, is_finished, read_record, read_records, write_record
from vqjax.errors import UserError


def test_a_record_comes_back(tmp_path):
    path = tmp_path / "some" / "run.json"
    measured = {"psnr": np.float32(23.456789), "points": np.ones((2, 2)), "lost": math.nan, "diverged": False}
    write_record(path, Record({"seed": 1, "init": (1, 2)}, measured, 1.23456))
    assert read_record(path) == Record(
        {"seed": 1, "init": [1, 2]},
        {"psnr": 23.4568, "points": [[1.0, 1.0], [1.0, 1.0]], "lost": None, "diverged": False},
        1.23,
    )
    assert is_finished(path, {"seed": 1, "init": (1, 2)})


def test_results_of_other_settings_are_neither_used_nor_overwritten(tmp_path):
    path = tmp_path / "run.json"
    write_record(path, Record({"seed": 1, "steps": 500}, {}, 1.0))
    with pytest.raises(UserError, match=r"run\.json was made with steps=500, now 10\. Delete it, or give another"):
        is_finished(path, {"seed": 1, "steps": 10})
    with pytest.raises(UserError, match="width=None, now 8"):
        is_finished(path, {"seed": 1, "steps": 500, "width": 8})


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"settings": {}}', '"text"'])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"run\.json is not the record of a run"):
        is_finished(path, {})


def test_records_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        write_record(tmp_path / f"{name}.json", Record({"name": name}, {}, 0.0))
    assert [record.settings["name"] for record in read_records(tmp_path)] == ["a", "b"]
    assert read_records(tmp_path / "missing") == []


def test_descriptions_hold_no_addresses():
    described = describe(
        {"module": nn.Dense(3), "partial": functools.partial(np.clip, 0, a_max=Path.cwd), "list": [None, True, 0.1]}
    )
    assert "0x" not in str(described)
    assert described["module"].startswith("Dense(features=3, use_bias=True")
    assert described["partial"] == "clip(0, a_max=Path.cwd)"
    assert described["list"] == [None, True, 0.1]
