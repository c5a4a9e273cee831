"""The study as a whole, tiny: what is done once, and what the document says."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.studies import tiny_images
from studies.choosing import collapse, himmelblau
from studies.choosing import runs as choosing_runs
from studies.choosing.__main__ import report
from studies.choosing.collapse import Experiment
from studies.choosing.report import DOCUMENT, document_parts
from studies.choosing.variants import REMEDIES, STARTS
from studies.common.document import fill, write_document
from studies.common.records import Results, Run
from studies.common.training import load_photographs
from vqjax.errors import UserError
from vqjax.reporting.figures import new_figure

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
TINY = collapse.Setting(steps=11, batch_size=4, image_size=16, width=8, latent_dim=4, num_codes=16)
DESCENT = himmelblau.Setting(steps=4, num_points=8, num_codes=4, seeds=2)


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("study") / "results.jsonl")
    choosing_runs.make_fields(choosing_runs.surface_runs()[:2], results)
    choosing_runs.make_descents(choosing_runs.himmelblau_runs(DESCENT)[:2], results, DESCENT)
    choosing_runs.make_collapses(choosing_runs.collapse_runs(TINY, 2, ["none"]), results, TINY, tiny_images)
    return results


def test_a_finished_run_is_not_repeated(finished_study):
    before = finished_study.path.stat().st_mtime_ns
    runs = choosing_runs.collapse_runs(TINY, 2, ["none"])
    assert len(runs) == 4
    assert finished_study.unfinished(runs) == []
    choosing_runs.make_collapses(finished_study.unfinished(runs), finished_study, TINY, tiny_images)
    assert before == finished_study.path.stat().st_mtime_ns
    # A seed more does only what is missing.
    more = finished_study.unfinished(choosing_runs.collapse_runs(TINY, 3, ["none"]))
    assert [run.settings["seed"] for run in more] == [2, 2]


def test_every_published_run_is_finished():
    results = Results(ROOT / "studies" / "choosing" / "results.jsonl")
    runs = [
        *choosing_runs.surface_runs(),
        *choosing_runs.himmelblau_runs(himmelblau.Setting()),
        *choosing_runs.collapse_runs(collapse.Setting(), seeds=3),
    ]
    assert results.unfinished(runs) == []
    assert len(results.records()) == len(runs)


def test_what_a_training_leaves(finished_study):
    records = finished_study.records("collapse")
    assert [(r.settings["start"], r.settings["seed"]) for r in records] == [
        ("fitting", 0),
        ("fitting", 1),
        ("too long", 0),
        ("too long", 1),
    ]
    for record in records:
        assert record.measured.keys() == {
            *("diverged", "psnr", "psnr_gain", "perplexity_split", "quantization_error", "codes_used", "norm_ratio")
        }
        assert 1 <= record.measured["codes_used"] <= 16
    assert records[0].measured != records[1].measured


def test_the_same_run_gives_the_same_numbers(finished_study):
    experiment = Experiment(REMEDIES["none"], TINY, load_photographs(tiny_images, TINY.image_size))
    steps = []
    measured = experiment.run(STARTS["fitting"], 1, lambda step, metrics: steps.append(step))
    assert steps == [10, 11]
    stored = finished_study.records("collapse")[1].measured
    assert measured["psnr"] == pytest.approx(stored["psnr"], rel=1e-5)
    assert measured["codes_used"] == stored["codes_used"]


def test_a_run_that_diverges_is_told_and_counted(tmp_path, finished_study):
    setting = collapse.Setting(**vars(TINY) | {"learning_rate": 1e20})
    experiment = Experiment(REMEDIES["none"], setting, load_photographs(tiny_images, 16))
    assert experiment.run(STARTS["fitting"], 0, lambda *_: None) == {"diverged": True}
    results = Results(tmp_path / "results.jsonl")
    for number, record in enumerate(finished_study.records("collapse")):
        measured = {"diverged": True} if number == 0 else record.measured
        results.add(Run(record.run, record.settings), measured, 1.0)
    assert "| 1 of 2 |" in document_parts(results)["remedies"]


def test_the_report_rebuilt_from_the_records_equals_itself(finished_study, tmp_path):
    pytest.importorskip("matplotlib")
    report(finished_study, tmp_path)
    written = [tmp_path / DOCUMENT, *(tmp_path / "choosing").iterdir()]
    assert {path.name for path in written} == {
        *("choosing-a-quantizer.md", "himmelblau.png", "remedies.png", "surface_quadratic.png")
    }
    before = {path: path.read_bytes() for path in written}
    report(finished_study, tmp_path)
    assert before == {path: path.read_bytes() for path in written}


def test_numbers_come_from_the_records_alone(tmp_path, finished_study):
    record = finished_study.records("collapse")[0]
    results = Results(tmp_path / "results.jsonl")
    results.add(Run(record.run, record.settings), record.measured | {"psnr": 12.3456}, 1.0)
    text = write_document(tmp_path / DOCUMENT, "Results", document_parts(results)).read_text()
    assert "| none | 12.35 |" in text
    assert text.count("Not measured yet") == 3


def test_the_published_document_is_that_of_the_published_records():
    text = (ROOT / "docs" / DOCUMENT).read_text()
    assert fill(text, document_parts(Results(ROOT / "studies" / "choosing" / "results.jsonl"))) == text


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'Figures need matplotlib, .* pip install "vqjax\[plots\]"'):
        new_figure(1.0, 1.0, 1, 1)


def test_a_misspelled_variant_is_told_in_one_line():
    command = [sys.executable, "-m", "studies.choosing", "--variants=rotatoin"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --variants='rotatoin' is unknown; did you mean 'rotation'?\n"
