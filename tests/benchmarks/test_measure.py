"""Results of benchmarks whose cases can be measured one by one."""

import json

import pytest

from benchmarks import measure


@pytest.fixture
def record(monkeypatch, tmp_path):
    """The file after a report of some rows on some machine."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)

    def report(machine, *rows, by="case"):
        monkeypatch.setattr(measure, "machine", lambda: {"device": machine, "platform": "cpu", "huge_pages": False})
        measure.report("speed", rows, ("case", "ms"), by=by)
        return json.loads((tmp_path / "speed-cpu.json").read_text())

    return report


def test_a_case_that_is_measured_alone_leaves_the_others_in_the_file(record):
    """It deleted them."""
    first, second, again = ({"case": case, "ms": ms} for case, ms in (("a", 1.0), ("b", 2.0), ("b", 3.0)))
    record("one", first, second)
    assert record("one", again)["rows"] == [first, again]


def test_rows_that_are_kept_keep_their_machine(record):
    a, b, c = ({"case": case, "ms": 1.0} for case in "abc")
    record("one", a)
    of_one = record("two", b)["rows"][0]
    assert of_one["machine"]["device"] == "one"
    assert record("three", c)["rows"][0] == of_one
    assert record("three", c, by=None)["rows"] == [c]
