"""Reports that can be published, and survive an interruption."""

import json
import os

import numpy as np
import pytest

from vqjax.evaluation import EvaluationResult, terminal_table, tokenizer_metrics, write_page, write_report

CONTEXT = {"dataset": "cifar10", "split": "test", "checkpoint_step": 500}
PROTOCOL = {name: text for metric in tokenizer_metrics(512) for name, text in metric.protocol.items()}
PICTURES = {"reconstructions": np.zeros([8, 8, 3], np.uint8)}


def result(**changes):
    metrics = {name: 0.5 for name in PROTOCOL} | {"ssim": None, "psnr": float("nan")} | changes
    return EvaluationResult(metrics, PROTOCOL, collected={})


def test_metrics_file_is_valid_json_with_protocol_context_and_versions(tmp_path):
    write_report(tmp_path, result(), context=CONTEXT, pictures=PICTURES)
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["ssim"] is content["metrics"]["psnr"] is None
    assert list(content["metrics"]) == list(content["protocol"]) == list(PROTOCOL)
    assert CONTEXT.items() <= content["context"].items()
    assert {"vqjax_version", "jax_version", "flax_version"} <= content["context"].keys()


def test_every_metric_is_in_the_report_and_in_the_table_with_its_protocol(tmp_path):
    write_report(tmp_path, result(), context=CONTEXT, pictures=PICTURES)
    report, table = (tmp_path / "report.md").read_text(), terminal_table(result(), CONTEXT)
    for name, protocol in PROTOCOL.items():
        assert f"| {name} |" in report
        assert protocol in report
        assert f"\n{name} " in table
    assert "(reconstructions.png)" in report


def test_intervals_stand_beside_their_numbers(tmp_path):
    numbers, protocol = {"images": 3, "psnr": 23.5}, {"images": "images of the split", "psnr": "dB"}
    result = EvaluationResult(numbers, protocol, collected={}, intervals={"psnr": (23.1, 23.9)})
    write_report(tmp_path, result, context={}, pictures={})
    write_page(tmp_path, result, context={}, caption=lambda index, label: "")
    assert json.loads((tmp_path / "metrics.json").read_text())["intervals"] == {"psnr": [23.1, 23.9]}
    assert "| psnr | 23.5 | 23.1 to 23.9 | dB |\n" in (tmp_path / "report.md").read_text()
    assert "| images | 3 |  | images of the split |\n" in (tmp_path / "report.md").read_text()
    assert "<td>23.5</td><td>23.1 to 23.9</td><td>dB</td>" in (tmp_path / "report.html").read_text()


def test_names_that_are_not_text_are_written(tmp_path):
    name = os.fsdecode(b"images\xff")
    write_report(tmp_path, result(), context={"dataset": name}, pictures={})
    write_page(tmp_path, result(), context={"dataset": name}, caption=lambda index, label: "")
    assert json.loads((tmp_path / "metrics.json").read_text())["context"]["dataset"] == name
    for file in ("report.md", "report.html"):
        assert r"images\udcff" in (tmp_path / file).read_text()


def test_an_interrupted_report_leaves_the_older_one(tmp_path, monkeypatch):
    write_report(tmp_path, result(mse_01=0.25), context=CONTEXT, pictures=PICTURES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, result(mse_01=0.75), context=CONTEXT, pictures=PICTURES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
