"""The reproduction of the CIFAR-10 study: runs once, continues exactly, and reports its records alone."""

import copy
import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from studies.common.names import chosen
from studies.common.records import read_record, unfinished, write_record
from studies.reproduction import figures as reproduction_figures
from studies.reproduction import runs as reproduction_runs
from studies.reproduction import training as study_training
from studies.reproduction.codebook_layout import lay_out
from studies.reproduction.figures import aligned
from studies.reproduction.report import write_document
from studies.reproduction.runs import Configuration, identity_error, make_runs, run_of, study_runs
from studies.reproduction.training import Scale, Snapshot, StudyImages, snapshot_epochs
from studies.reproduction.variants import ESTIMATORS, PROTOCOLS, VARIANTS
from vqjax.errors import UserError

TINY = Scale(epochs=3, training_images=32, test_images=16, seeds=1)
SIZE = 16


def random_images():
    images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    return StudyImages(images[:32], images[32:])


def shrink(patch):
    """Eight channels, sixteen codes and batches of eight."""
    for name, variant in VARIANTS.items():
        patch.setitem(VARIANTS, name, variant._replace(width=8, code_dim=variant.code_dim and 8))
    patch.setattr(study_training, "BATCH_SIZE", 8)
    tiny = [Configuration(name, num_codes=SIZE) for name in PROTOCOLS]
    patch.setitem(reproduction_runs.TABLES, "betas", tiny)
    patch.setitem(reproduction_runs.TABLES, "estimators", tiny[1:])
    patch.setitem(reproduction_runs.SCALES, "small", TINY)
    patch.setattr(reproduction_runs, "PICTURED", tuple(tiny))
    patch.setattr(reproduction_figures, "PICTURED", tuple(tiny))


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("reproduction") / "reproduction"
    results = output / "small"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        make_runs(study_runs(results, TINY, ["betas"]), results, TINY, output.parent / "work", random_images)
    return output


def records(output):
    return {run.path.name: read_record(run.path) for run in study_runs(output / "small", TINY, ["betas"])}


def test_a_finished_study_has_nothing_to_do_and_leaves_no_states(finished, small):
    assert unfinished(study_runs(finished / "small", TINY, ["betas"])) == []
    assert len(unfinished(study_runs(finished / "small", dataclasses.replace(TINY, seeds=2), ["betas"]))) == 2
    assert list((finished.parent / "work").iterdir()) == []


def test_the_total_of_a_faithful_run_is_what_its_parts_say(finished, small):
    (record,) = (record for name, record in records(finished).items() if name.startswith("faithful"))
    assert record.measured["identity_error"] < 1e-6
    # The records are rounded to six digits.
    assert identity_error(record.measured["epochs"], 0.25) < 3e-6


def test_test_images_move_the_codebook_of_faithful_runs_alone(small):
    for name in PROTOCOLS:
        training = study_training.StudyTraining(VARIANTS[name], SIZE, 0.25, TINY, random_images())
        before = training._start(0)
        after, _, _ = training._test_epoch(before)
        codebooks = (state.collections["codebook"]["quantizer"] for state in (before, after))
        moved = any(np.any(one != other) for one, other in zip(*(book.values() for book in codebooks), strict=True))
        assert moved == (name == "faithful")


def test_an_interrupted_run_ends_like_one_that_was_not(finished, small, tmp_path, monkeypatch):
    """Killed in the second epoch, after the first one's history had been written."""
    real = study_training.StudyTraining._test_epoch
    passes = []

    def die(self, state):
        passes.append(state)
        if len(passes) == 2:
            raise MemoryError("killed")
        return real(self, state)

    runs = [run_of(tmp_path, TINY, Configuration("faithful", num_codes=SIZE), seed=0)]
    monkeypatch.setattr(study_training.StudyTraining, "_test_epoch", die)
    with pytest.raises(MemoryError):
        make_runs(runs, tmp_path, TINY, tmp_path / "work", random_images)
    monkeypatch.setattr(study_training.StudyTraining, "_test_epoch", real)
    make_runs(runs, tmp_path, TINY, tmp_path / "work", random_images)
    assert read_record(runs[0].path).measured == records(finished)[runs[0].path.name].measured


def test_the_report_is_made_of_the_records_and_the_same_when_made_again(finished, small):
    published = {"columns": [], "printed": {}, "runs": {}}
    published["printed"]["table_2"] = {"Initial": [0.1, 0.0433, 0.0454, 17.95]}
    published["printed"]["table_3"] = {"test": {"2.0": [0.0273, 0.0114, 0.0053, 117.17]}}
    (finished / "published.json").write_text(json.dumps(published))
    written = write_document(finished)
    assert [path.name for path in written] == [
        *(f"small_{name}.png" for name in ("reconstructions", "codebooks", "curves")),
        "reproduction.md",
    ]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_document(finished)] == before
    document = written[-1].read_text()
    for record in records(finished).values():
        last = record.measured["epochs"][-1]
        for number in (last["train"]["loss"], last["test"]["reconstruction_mse"], last["test"]["perplexity"]):
            assert f"{number:.4g}" in document
    assert "`python -m studies.reproduction --scale=small --tables=betas`" in document
    assert "| Initial | 0.1 | 0.0433 | 0.0454 | 17.95 | 0.1001 |" in document
    assert "| test, β = 2.0 | 0.0273 | 0.0114 | 0.0053 | 117.17 | 0.0273 |" in document


def test_a_run_that_diverged_leaves_a_gap(finished, small, tmp_path):
    for path in (finished / "small").glob("*.json"):
        record = read_record(path)
        lost = {"epochs": copy.deepcopy(record.measured["epochs"]), "identity_error": math.nan}
        lost["epochs"][-1]["test"]["perplexity"] = math.nan
        write_record(tmp_path / "reproduction" / "small" / path.name, record._replace(measured=lost))
    shutil.copytree(finished / "small" / "snapshots", tmp_path / "reproduction" / "small" / "snapshots")
    document = write_document(tmp_path / "reproduction")[-1].read_text()
    assert "| – | 1 |" in document
    assert "has not been measured yet" in document
    assert math.isnan(
        identity_error([{"test": dict.fromkeys(("loss", "reconstruction_mse", "codebook_loss"), 1.0)}] * 2, math.nan)
    )


def test_records_of_another_scale_are_refused(finished, small, monkeypatch):
    monkeypatch.setitem(reproduction_runs.SCALES, "small", dataclasses.replace(TINY, epochs=4))
    with pytest.raises(UserError, match=r"was made with epochs=3, now 4"):
        write_document(finished)


def test_an_interrupted_run_is_not_continued_as_another(small, tmp_path):
    training = study_training.StudyTraining(VARIANTS["corrected"], SIZE, 0.25, TINY, random_images())
    with pytest.raises(MemoryError):
        training.run(0, tmp_path, {"seed": 0}, ignore, die)
    with pytest.raises(UserError, match=r"holds an interrupted run of .*'seed': 0.* not of .*'seed': 1"):
        training.run(1, tmp_path, {"seed": 1}, ignore, die)


def ignore(*_):
    pass


def die(*_):
    raise MemoryError("killed")


def test_an_empty_study_says_how_to_run_it(tmp_path):
    document = write_document(tmp_path / "reproduction")[-1].read_text()
    assert len(re.findall(r"Not run yet: `python -m studies.reproduction --tables=", document)) == 5


def test_configurations_that_several_tables_show_are_run_once():
    runs = study_runs(reproduction_runs.Path("x"), Scale(1, 128, 128, 2), ["betas", "sizes", "estimators"])
    assert len({run.path for run in runs}) == len(runs) == 2 * (10 + 6 + len(ESTIMATORS))
    assert [run.settings["seed"] for run in runs] == sorted(run.settings["seed"] for run in runs)


def test_the_figures_show_the_epochs_of_the_study():
    assert snapshot_epochs(100) == [0, 25, 50, 75, 99]


def test_codes_that_stay_lie_on_the_same_side_in_the_next_epoch(tmp_path):
    codes = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    codes[:20] += 10
    layouts = []
    for epoch in (0, 2):
        path = tmp_path / f"x--epoch{epoch}.json"
        lay_out(path, Snapshot(epoch, np.zeros((1, 32, 32, 3), np.uint8), codes, np.ones(40)))
        layouts.append(np.array(json.loads(path.read_text())["layout"]))
    first = layouts[0] - layouts[0].mean(axis=0)
    second = aligned(layouts[1], first)
    directions = [layout[:20].mean(0) - layout[20:].mean(0) for layout in (first, second)]
    assert directions[0] @ directions[1] > 0.9 * math.prod(np.linalg.norm(d) for d in directions)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"--tables='beta' is unknown: did you mean 'betas'"):
        chosen(["beta"], ["betas", "sizes"], "tables")
