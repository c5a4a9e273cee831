"""The study of all quantizers: runs once, continues, and reports its records alone."""

import re
from pathlib import Path

import pytest

from helpers.studies import tiny_images
from studies.common.document import fill, write_document
from studies.common.records import Results, Run
from studies.common.training import TrainingSetting
from studies.quantizers.report import DOCUMENT, document_parts
from studies.quantizers.runs import make_runs, quantizer_runs
from studies.quantizers.variants import VARIANTS
from vqjax.quantizers.recipes import RECIPES

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
TINY = TrainingSetting(steps=11, batch_size=4, image_size=16, width=8, latent_dim=4)
NAMES = ["fsq", "residual_vq"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("study") / "results.jsonl")
    make_runs(quantizer_runs(TINY, 1, NAMES), results, TINY, tiny_images)
    return results


def test_every_quantizer_has_a_row():
    assert VARIANTS.keys() == RECIPES.keys()


def test_a_finished_study_has_nothing_to_do_and_another_seed_is_new(finished):
    assert finished.unfinished(quantizer_runs(TINY, 1, NAMES)) == []
    assert len(finished.unfinished(quantizer_runs(TINY, 2, NAMES))) == 2


def test_every_published_run_is_finished():
    results = Results(ROOT / "studies" / "quantizers" / "results.jsonl")
    runs = quantizer_runs(TrainingSetting(), seeds=3)
    assert results.unfinished(runs) == []
    assert len(results.records()) == len(runs)


def test_the_published_document_is_that_of_the_published_records():
    text = (ROOT / "docs" / DOCUMENT).read_text()
    assert fill(text, document_parts(Results(ROOT / "studies" / "quantizers" / "results.jsonl"))) == text


def test_the_table_holds_the_records(finished, tmp_path):
    rows = document_parts(finished)["measured"].splitlines()[2:]
    assert [re.search(r"`(.+?)`", row)[1] for row in rows] == ["Residual(VectorQuantizer)", "FSQ"]
    record = finished.records()[0]
    assert record.measured["microseconds_per_vector"] > 0
    results = Results(tmp_path / "results.jsonl")
    results.add(Run(record.run, record.settings), record.measured | {"psnr": 12.3456}, 1.0)
    assert "12.35" in document_parts(results)["measured"]


def test_a_run_that_diverged_shows_no_numbers(finished, tmp_path):
    record = finished.records()[0]
    lost = dict.fromkeys(record.measured) | {"diverged": True, "microseconds_per_vector": 1.0}
    results = Results(tmp_path / "results.jsonl")
    results.add(Run(record.run, record.settings), lost, 1.0)
    assert "| – | 1.00 | – | – % | 0 |" in document_parts(results)["measured"]


def test_the_document_is_made_and_filled_again(finished, tmp_path):
    path = write_document(tmp_path / DOCUMENT, "Results", document_parts(finished))
    text = path.read_text()
    assert text.startswith("# Results")
    write_document(path, "Results", document_parts(finished))
    assert path.read_text() == text
