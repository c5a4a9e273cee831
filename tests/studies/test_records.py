import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from studies.common.records import Record, Results, Run
from vqjax.errors import UserError


def test_a_record_comes_back(tmp_path):
    results = Results(tmp_path / "some" / "results.jsonl")
    run = Run("a--seed1", {"seed": 1, "init": (1, 2)})
    measured = {"psnr": np.float32(23.456789), "points": np.ones((2, 2)), "lost": math.nan, "diverged": False}
    results.add(run, measured, 1.23456)
    assert results.records() == [
        Record(
            "a--seed1",
            {"seed": 1, "init": [1, 2]},
            {"psnr": 23.4568, "points": [[1.0, 1.0], [1.0, 1.0]], "lost": None, "diverged": False},
            1.23,
        )
    ]
    assert results.unfinished([run]) == []


def test_results_of_other_settings_are_neither_used_nor_overwritten(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(Run("a", {"seed": 1, "steps": 500}), {}, 1.0)
    with pytest.raises(UserError, match=r"a in .*results\.jsonl was made with steps=500, now 10\. Delete that line"):
        results.unfinished([Run("a", {"seed": 1, "steps": 10})])
    with pytest.raises(UserError, match="width=None, now 8"):
        results.unfinished([Run("a", {"seed": 1, "steps": 500, "width": 8})])


@pytest.mark.parametrize("content", ["\n", "[1, 2]", '{"settings": {}}', '"text"', '{"run": "b", "settings": {}, "mea'])
def test_a_line_that_is_not_a_record_is_named(tmp_path, content):
    results = Results(tmp_path / "results.jsonl")
    results.add(Run("a", {}), {}, 1.0)
    results.path.write_text(results.path.read_text() + content)
    with pytest.raises(UserError, match=r"Line 2 of .*results\.jsonl is not the record of a run"):
        results.unfinished([])


def test_records_are_in_the_order_of_their_names(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    assert results.records() == []
    for name in ("y/b", "x/c", "y/a"):
        results.add(Run(name, {}), {}, 0.0)
    assert [record.run for record in results.records()] == ["x/c", "y/a", "y/b"]
    assert [record.run for record in results.records("y")] == ["y/a", "y/b"]


def test_a_new_run_changes_no_other_line(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(Run("b", {}), {"psnr": 24.0}, 0.0)
    by_hand = results.path.read_text().replace("24.0", "24.00")
    results.path.write_text(by_hand)
    results.add(Run("a", {}), {}, 0.0)
    results.add(Run("c", {}), {}, 0.0)
    assert results.path.read_text().splitlines()[1] == by_hand.strip()


def test_a_run_that_is_made_again_replaces_its_line(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for psnr in (1.0, 2.0):
        results.add(Run("a", {}), {"psnr": psnr}, 0.0)
    assert [record.measured for record in results.records()] == [{"psnr": 2.0}]


def test_a_write_that_fails_loses_no_record(tmp_path, monkeypatch):
    results = Results(tmp_path / "results.jsonl")
    results.add(Run("a", {}), {}, 0.0)
    before = results.path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        results.add(Run("b", {}), {}, 0.0)
    assert results.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_studies_that_add_at_the_same_time_lose_no_record(tmp_path):
    path = tmp_path / "results.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Results(path).add(Run(f"{number:02}", {}), {}, 0.0), range(40)))
    assert [record.run for record in Results(path).records()] == [f"{number:02}" for number in range(40)]
