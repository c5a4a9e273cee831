"""The study of all quantizers: runs once, continues, and reports its records alone."""

import re

import pytest

from helpers.studies import tiny_images
from studies.common.photograph_training import TrainingSetting
from studies.common.records import read_records, unfinished, write_record
from studies.quantizers.__main__ import document_parts, write_document
from studies.quantizers.facts import FACTS
from studies.quantizers.runs import family_runs, make_trainings
from vqjax.quantizers.registry import FAMILIES

TINY = TrainingSetting(steps=11, batch_size=4, image_size=16, width=8, code_dim=4)
NAMES = ["fsq", "residual_vq"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("study") / "quantizers"
    make_trainings(family_runs(output / "results", TINY, 1, NAMES), TINY, tiny_images)
    return output


def test_every_quantizer_has_its_words():
    assert FACTS.keys() == FAMILIES.keys()


def test_a_finished_study_has_nothing_to_do_and_another_seed_is_new(finished):
    assert unfinished(family_runs(finished / "results", TINY, 1, NAMES)) == []
    assert len(unfinished(family_runs(finished / "results", TINY, 2, NAMES))) == 2


def test_the_table_holds_the_records(finished, tmp_path):
    rows = document_parts(finished)["measured"].splitlines()[2:]
    assert [re.search(r"`(\w+)`", row)[1] for row in rows] == ["ResidualVQ", "FSQ"]
    record = read_records(finished / "results")[0]
    assert record.measured["microseconds_per_vector"] > 0
    write_record(tmp_path / "results" / "x.json", record._replace(measured=record.measured | {"psnr": 12.3456}))
    assert "12.35" in document_parts(tmp_path)["measured"]


def test_a_run_that_diverged_shows_no_numbers(finished, tmp_path):
    record = read_records(finished / "results")[0]
    lost = dict.fromkeys(record.measured) | {"diverged": True, "microseconds_per_vector": 1.0}
    write_record(tmp_path / "results" / "x.json", record._replace(measured=lost))
    assert "| – | 1.00 | – | – % | 0 |" in document_parts(tmp_path)["measured"]


def test_the_document_is_made_and_filled_again(finished):
    path = write_document(finished)
    assert path.name == "quantizers.md"
    text = path.read_text()
    write_document(finished)
    assert path.read_text() == text
