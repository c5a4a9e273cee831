"""The campaign decides by itself, skips what is finished, and stops at its limits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_campaign
from benchmarks.gpu_campaign import PARTS, Part, Verdict


def searched(contender, ms, wrong="0 of 4096", case="a"):
    return {"case": case, "contender": contender, "ms": ms, "wrong codes": wrong}


def test_the_fastest_search_without_a_wrong_code_is_chosen():
    rows = [searched("vqjax", 3.0), searched("kernel", 1.0), searched("all distances at once", 0.5, "7 of 4096")]
    verdict = PARTS["search"].decide([*rows, {"case": "a", "contender": "one matrix product", "ms": 0.1}])
    assert not verdict.passed
    assert verdict.text.startswith("fastest with 0 wrong codes: kernel, 3.00x ahead; make 'kernel' the search")
    assert PARTS["search"].decide([rows[0], searched("kernel", 2.9)]).passed
    verdict = PARTS["search"].decide([rows[0], searched("kernel", 1.0, "1 of 4096")])
    assert verdict.passed
    assert verdict.text.endswith("vqjax, 1.00x ahead; keep the search")
    verdict = PARTS["search"].decide([searched("vqjax", 3.0, "1 of 4096"), rows[1]])
    assert not verdict.passed
    assert verdict.text == "the search of the package has wrong codes"


def test_what_failed_in_one_case_is_said_and_not_chosen():
    rows = [
        searched("vqjax", 3.0),
        searched("vqjax", 3.0, case="b"),
        searched("chunks", 1.0),
        {"case": "c", "error": "X"},
    ]
    text = PARTS["search"].decide(rows).text
    assert "vqjax, 1.00x ahead; keep the search; c failed: X" in text


@pytest.mark.parametrize(("faster", "products", "passed"), [(6.0, 1.4, True), (4.9, 1.4, False), (6.0, 1.6, False)])
def test_the_quantizer_is_compared_with_the_compiled_peer_and_one_product(faster, products, passed):
    peer = {"case": "a", "contender": "vector-quantize-pytorch, torch.compile", "ms": 9.0, "ours is faster by": faster}
    ours = {"case": "a", "contender": "vqjax", "ms": 1.0, "times one product": products}
    assert PARTS["quantizer"].decide([ours, peer]).passed == passed


def test_other_indices_of_a_few_tokens_are_rounding_and_of_many_are_not():
    row = {"name": "vq", "largest difference": 1e-6, "where": None, "indices differ": 0, "of": 1000}
    assert PARTS["backends"].decide([row, row | {"indices differ": 9, "largest difference": 1.0}]).passed
    for wrong in ({"indices differ": 11}, {"largest difference": 0.01}, {"largest difference": float("nan")}):
        assert not PARTS["backends"].decide([row | wrong]).passed, wrong
    assert not PARTS["backends"].decide([row, {"name": "fsq", "error": "X"}]).passed


def test_drawing_tokens_is_compared_with_the_faster_loop_and_compiles_once():
    ours = {"contender": "vqjax", "tokens/s": 5000.0, "programs": 1}
    peers = [{"contender": name, "ours is faster by": faster} for name, faster in (("a", 2.0), ("b", 1.1))]
    assert PARTS["sampling"].decide([ours, *peers]).passed
    assert not PARTS["sampling"].decide([ours, peers[0], {"contender": "b", "ours is faster by": 0.9}]).passed
    assert not PARTS["sampling"].decide([ours | {"programs": 2}, *peers]).passed
    assert PARTS["sampling"].decide([ours]).passed is None


def test_the_slowest_tokenizer_decides():
    rows = [{"case": name, "contender": "vqjax", "images/s": 100.0} for name in ("vqgan", "vit_vqgan")]
    assert PARTS["vqgan"].decide(rows).passed is None
    peers = [
        {"case": name, "contender": "PyTorch, torch.compile", "images/s": 1.0, "ours is faster by": ratio}
        for name, ratio in (("vqgan", 1.6), ("vit_vqgan", 1.4))
    ]
    assert not PARTS["vqgan"].decide([*rows, *peers]).passed
    assert PARTS["vqgan"].decide([*rows, peers[0]]).passed


def test_the_rate_of_all_cores_decides_whether_images_are_fed():
    rows = [
        {"contender": name, "cores": cores, "images/s": rate}
        for name, cores, rate in (("vqjax", 1, 400.0), ("vqjax", 16, 1600.0), ("torch DataLoader", 16, 3000.0))
    ]
    assert PARTS["feeding"].decide(rows).passed
    assert not PARTS["feeding"].decide([rows[0], rows[2]]).passed


def test_a_run_that_ended_before_it_was_killed_decides_nothing():
    row = {"same log": True, "same evaluation": True, "status of the killed run": 0, "flags": "", "seconds": 1.0}
    assert PARTS["interrupted"].decide([row]).passed is None
    assert PARTS["interrupted"].decide([row | {"status of the killed run": -9}]).passed


@pytest.fixture
def campaign(monkeypatch, tmp_path):
    """Runs parts that are commands of the shell instead of measurements."""
    commands = {"quick": "true", "failing": "false", "endless": "sleep 60"}
    parts = {name: Part(name, 0.01, lambda toy: [], lambda rows: Verdict(None, "")) for name in commands}
    monkeypatch.setattr(gpu_campaign, "PARTS", parts | {"absent": parts["quick"]._replace(needs=("nonsense",))})
    popen = subprocess.Popen

    def start(command, **options):
        (name,) = [argument.removeprefix("--part=") for argument in command if argument.startswith("--part=")]
        return popen(["sh", "-c", commands[name]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    return lambda *names, minutes=None: gpu_campaign._run(names, tmp_path, toy=False, minutes=minutes)


def test_failures_and_limits_end_a_part_and_not_the_campaign(campaign, capsys):
    campaign("failing", "endless", "absent", "quick")
    lines = capsys.readouterr().out.splitlines()
    assert "failing: failed with status 1; the next command tries it again" in lines
    assert "endless: stopped at its limit; the next command tries it again" in lines
    assert "absent: left for later, needs nonsense" in lines
    assert lines[-1].startswith("quick: quick")


def test_a_part_that_does_not_fit_into_the_time_is_left_for_later(campaign, capsys):
    campaign("quick", minutes=0.001)
    assert "quick: left for later, its limit is 0.01 minutes" in capsys.readouterr().out


def test_finished_parts_are_skipped(campaign, capsys, tmp_path):
    (tmp_path / "gpu_campaign-quick.json").touch()
    campaign("quick")
    assert capsys.readouterr().out == "quick: finished before\n"


@pytest.mark.full
def test_the_rehearsal_runs_every_part(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "--toy", f"--results={tmp_path}"]
    root = Path(__file__).parents[2]
    first = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    for name in PARTS:
        record = json.loads((tmp_path / f"gpu_campaign-{name}.json").read_text())
        assert record["rows"], name
        assert not any("error" in row for row in record["rows"]), name
        assert record["text"] in first.stdout
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert all(f"{name}: finished before" in again.stdout for name in PARTS)
