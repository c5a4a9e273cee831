"""The campaign decides by itself, skips what is finished, and stops at its limits."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_campaign
from benchmarks.gpu_campaign import PARTS, Part, Verdict
from benchmarks.measure import RESULTS

ROOT = Path(__file__).parents[2]


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
    verdict = PARTS["search"].decide([{"case": "a", "error": "X"}])
    assert verdict == Verdict(None, "no search ran; a failed: X", undecided=True)


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


def test_the_first_case_of_the_quantizer_decides_and_the_others_are_said():
    peer = {"contender": "vector-quantize-pytorch, torch.compile", "ms": 9.0, "ours is faster by": 6.0}
    ours = {"contender": "vqjax", "ms": 1.0, "times one product": 1.4}
    large, small = {"case": "large"}, {"case": "small"}
    verdict = PARTS["quantizer"].decide([large | ours, small | ours, small | peer])
    assert verdict.passed is None
    assert verdict.undecided
    assert "large: the compiled peer did not run" in verdict.text
    assert "small: 6.0x the compiled peer" in verdict.text
    failed = PARTS["quantizer"].decide([large | {"error": "X"}, small | ours, small | peer])
    assert failed.undecided
    assert failed.text.endswith("large failed: X")


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
    parts = {name: Part(name, 1.0, lambda toy: [], lambda rows: Verdict(None, "")) for name in commands}
    parts["endless"] = parts["endless"]._replace(minutes=0.01)
    monkeypatch.setattr(gpu_campaign, "PARTS", parts | {"absent": parts["quick"]._replace(needs=("nonsense",))})
    monkeypatch.setattr(gpu_campaign, "_wait_for_the_gpu", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
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
    assert "quick: left for later, its limit is 1 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "undecided", "again"), [({}, False, False), ({}, True, True), ({"case": "a", "error": "X"}, False, True)]
)
def test_parts_that_are_decided_are_skipped(campaign, monkeypatch, capsys, tmp_path, row, undecided, again):
    """One whose peer did not run, or of which a case failed, was taken for finished."""
    decide = gpu_campaign.PARTS["quick"]._replace(decide=lambda rows: Verdict(None, "", undecided))
    monkeypatch.setitem(gpu_campaign.PARTS, "quick", decide)
    (tmp_path / "gpu_campaign-quick.json").write_text(json.dumps({"rows": [row]}))
    campaign("quick")
    assert (capsys.readouterr().out == "quick: finished before\n") == (not again)


def test_the_published_records_can_be_judged():
    names = [path.stem.removeprefix("gpu_campaign-") for path in RESULTS.glob("gpu_campaign-*.json")]
    assert {name: gpu_campaign._verdict(name, RESULTS).undecided for name in names} == {
        "backends": False,
        "counting": False,
        # The compiled peer ran in the smaller case alone.
        "quantizer": True,
        "search": False,
    }


def test_the_campaign_leaves_the_device_to_its_parts():
    """A key that a module made when it was imported kept three quarters of the GPU's memory from all of them."""
    code = "import jax; from benchmarks import gpu_campaign; print(jax._src.xla_bridge._backends)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "{}\n"


def test_runs_of_one_line_of_progress_say_nothing_of_the_speed():
    rows = [{"steps_per_dispatch": n, "images/s of the steps": rate} for n, rate in ((1, 500.0), (20, 900.0))]
    assert PARTS["dispatch"].decide(rows).text.endswith("1: 500, 20: 900; best: 20 (20 by default)")
    assert PARTS["dispatch"].decide([rows[0], rows[1] | {"images/s of the steps": None}]).undecided


@pytest.mark.full
def test_the_rehearsal_runs_every_part(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "--toy", f"--results={tmp_path}"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in PARTS:
        record = json.loads((tmp_path / f"gpu_campaign-{name}.json").read_text())
        assert record["rows"], name
        assert not any("error" in row for row in record["rows"]), name
        assert PARTS[name].decide(record["rows"]).text in first.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"{name}: finished before" in again.stdout for name in PARTS)
