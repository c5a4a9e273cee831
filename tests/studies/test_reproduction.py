"""The reproduction of the CIFAR-10 study: runs once, continues exactly, and reports its records alone."""

import copy
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from studies.common.command import chosen
from studies.common.document import fill
from studies.common.records import Results, Run
from studies.reproduction import figures as reproduction_figures
from studies.reproduction import runs as reproduction_runs
from studies.reproduction import training as reproduction_training
from studies.reproduction.layout import aligned, lay_out
from studies.reproduction.report import DOCUMENT, by_configuration, document_parts, read_published, write_report
from studies.reproduction.runs import SCALES, Configuration, identity_error, make_runs, run_of, table_runs
from studies.reproduction.training import Cifar10, Scale, Training, snapshot_epochs
from studies.reproduction.variants import ESTIMATORS, PROTOCOLS, VARIANTS
from vqjax.errors import UserError

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
TINY = Scale("small", epochs=3, training_images=32, test_images=16, seeds=1)
SIZE = 16


def random_images():
    images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    return Cifar10(images[:32], images[32:])


def shrink(patch):
    """Eight channels, sixteen codes and batches of eight."""
    for name, variant in VARIANTS.items():
        patch.setitem(VARIANTS, name, variant._replace(width=8, latent_dim=variant.latent_dim and 8))
    patch.setattr(reproduction_training, "BATCH_SIZE", 8)
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
    directory = tmp_path_factory.mktemp("reproduction") / "records"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        make_runs(table_runs(TINY, ["betas"]), directory, TINY, directory.parent / "work", random_images)
    return directory


def records(directory):
    return {record.run: record for record in Results(directory / "results.jsonl").records("small")}


def write(directory, changed):
    """Stores other records."""
    results = Results(directory / "results.jsonl")
    for record in changed:
        results.add(Run(record.run, record.settings), record.measured, record.seconds)


def test_a_finished_study_has_nothing_to_do_and_leaves_no_states(finished, small):
    results = Results(finished / "results.jsonl")
    assert results.unfinished(table_runs(TINY, ["betas"])) == []
    assert len(results.unfinished(table_runs(dataclasses.replace(TINY, seeds=2), ["betas"]))) == 2
    assert list((finished.parent / "work").iterdir()) == []


def test_every_published_run_is_finished():
    results = Results(ROOT / "studies" / "reproduction" / "results.jsonl")
    small = table_runs(SCALES["small"], ["betas", "sizes"])
    small += [run for run in table_runs(SCALES["small"], ["estimators", "latents"]) if run.settings["seed"] == 0]
    five_epochs = table_runs(SCALES["five_epochs"], ["betas"], betas=(0.1, 0.25))
    assert results.unfinished([*small, *five_epochs]) == []
    assert len(results.records()) == len({run.name for run in small} | {run.name for run in five_epochs})


def test_the_published_document_is_that_of_the_published_records():
    directory, text = ROOT / "studies" / "reproduction", (ROOT / "docs" / DOCUMENT).read_text()
    results = Results(directory / "results.jsonl")
    study = {name: runs for name, scale in SCALES.items() if (runs := by_configuration(results, scale))}
    names = ("reconstructions", "codebooks", "curves", "commitment_weights")
    figures = [Path(f"{scale}_{name}.png") for scale in ("five_epochs", "small") for name in names]
    assert fill(text, document_parts(study, read_published(directory / "published.json"), figures)) == text


def test_the_total_of_a_faithful_run_is_what_its_parts_say(finished, small):
    (record,) = (record for name, record in records(finished).items() if name.startswith("small/faithful"))
    assert record.measured["identity_error"] < 1e-6
    # The records are rounded to six digits.
    assert identity_error(record.measured["epochs"], 0.25) < 3e-6


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "faithful"])
def test_a_variant_has_the_estimator_of_its_name_whatever_the_default_is(name):
    estimator = "rotation" if name == "corrected" else name.partition(",")[0]
    assert VARIANTS[name].model(SIZE, 0.25).quantizer.estimator == estimator.replace("-", "_").replace(" ", "_")


def test_test_images_move_the_codebook_of_faithful_runs_alone(small):
    for name in PROTOCOLS:
        training = Training(VARIANTS[name], SIZE, 0.25, TINY, random_images())
        before = training._start(0)
        after, _, _ = training._test_epoch(before)
        codebooks = (state.variables["generator"]["codebook"]["quantizer"] for state in (before, after))
        moved = any(np.any(one != other) for one, other in zip(*(book.values() for book in codebooks), strict=True))
        assert moved == (name == "faithful")


def test_an_interrupted_run_ends_like_one_that_was_not(finished, small, tmp_path, monkeypatch):
    """Killed in the second epoch, after the first one's history had been written."""
    real = Training._test_epoch
    passes = []

    def die(self, state):
        passes.append(state)
        if len(passes) == 2:
            raise MemoryError("killed")
        return real(self, state)

    (run,) = runs = [run_of(TINY, Configuration("faithful", num_codes=SIZE), seed=0)]
    monkeypatch.setattr(Training, "_test_epoch", die)
    with pytest.raises(MemoryError):
        make_runs(runs, tmp_path, TINY, tmp_path / "work", random_images)
    monkeypatch.setattr(Training, "_test_epoch", real)
    make_runs(runs, tmp_path, TINY, tmp_path / "work", random_images)
    assert records(tmp_path)[run.name].measured == records(finished)[run.name].measured


def test_the_report_is_made_of_the_records_and_the_same_when_made_again(finished, small, tmp_path):
    published = {"columns": [], "printed": {}, "runs": {}}
    published["printed"]["table_2"] = {"Initial": [0.1, 0.0433, 0.0454, 17.95]}
    published["printed"]["table_3"] = {"test": {"2.0": [0.0273, 0.0114, 0.0053, 117.17]}}
    (finished / "published.json").write_text(json.dumps(published))
    written = write_report(finished, tmp_path)
    assert [path.name for path in written] == [
        *(f"small_{name}.png" for name in ("reconstructions", "codebooks", "curves")),
        "reproduction.md",
    ]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_report(finished, tmp_path)] == before
    document = written[-1].read_text()
    for record in records(finished).values():
        last = record.measured["epochs"][-1]
        for number in (last["train"]["loss"], last["test"]["reconstruction_mse"], last["test"]["perplexity"]):
            assert f"{number:.4g}" in document
    assert "`python -m studies.reproduction --scale=small --tables=betas`" in document
    assert "| Initial | 0.1 | 0.0433 | 0.0454 | 17.95 | 0.1001 |" in document
    assert "| test, β = 2.0 | 0.0273 | 0.0114 | 0.0053 | 117.17 | 0.0273 |" in document


def test_a_run_that_diverged_leaves_a_gap(finished, small, tmp_path):
    changed = []
    for record in records(finished).values():
        lost = {"epochs": copy.deepcopy(record.measured["epochs"]), "identity_error": math.nan}
        lost["epochs"][-1]["test"]["perplexity"] = math.nan
        changed.append(record._replace(measured=lost))
    write(tmp_path, changed)
    shutil.copytree(finished / "snapshots", tmp_path / "snapshots")
    document = write_report(tmp_path, tmp_path)[-1].read_text()
    assert "| – | 1 |" in document
    assert "has not been measured yet" in document
    assert math.isnan(
        identity_error([{"test": dict.fromkeys(("loss", "reconstruction_mse", "codebook_loss"), 1.0)}] * 2, math.nan)
    )


def test_records_of_another_scale_are_refused(finished, small, tmp_path, monkeypatch):
    monkeypatch.setitem(reproduction_runs.SCALES, "small", dataclasses.replace(TINY, epochs=4))
    with pytest.raises(UserError, match=r"was made with epochs=3, now 4"):
        write_report(finished, tmp_path)


def test_records_under_another_name_are_refused(finished, small, tmp_path):
    write(tmp_path, [record._replace(run=f"{record.run}-copy") for record in records(finished).values()])
    with pytest.raises(UserError, match=r"results.jsonl has the results of small/\w+--codes16--beta0_25--seed0 under"):
        write_report(tmp_path, tmp_path)


def test_an_interrupted_run_is_not_continued_as_another(small, tmp_path):
    training = Training(VARIANTS["corrected"], SIZE, 0.25, TINY, random_images())
    with pytest.raises(MemoryError):
        training.run(0, tmp_path, {"seed": 0}, ignore, die)
    with pytest.raises(UserError, match=r"holds an interrupted run of .*'seed': 0.* not of .*'seed': 1"):
        training.run(1, tmp_path, {"seed": 1}, ignore, die)


def ignore(*_):
    pass


def die(*_):
    raise MemoryError("killed")


def test_an_empty_study_says_how_to_run_it(tmp_path):
    document = write_report(tmp_path, tmp_path)[-1].read_text()
    assert len(re.findall(r"Not run yet: `python -m studies.reproduction --tables=", document)) == 5


def test_configurations_that_several_tables_show_are_run_once():
    runs = table_runs(Scale("tiny", 1, 128, 128, 2), ["betas", "sizes", "estimators"])
    assert len({run.name for run in runs}) == len(runs) == 2 * (10 + 6 + len(ESTIMATORS))
    assert [run.settings["seed"] for run in runs] == sorted(run.settings["seed"] for run in runs)


def test_the_figures_show_the_epochs_of_the_study():
    assert snapshot_epochs(100) == [0, 25, 50, 75, 99]


def test_codes_that_stay_lie_on_the_same_side_in_the_next_epoch():
    codes = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    codes[:20] += 10
    layouts = [lay_out(codes, None)]
    layouts.append(lay_out(codes, layouts[0]))
    first = layouts[0] - layouts[0].mean(axis=0)
    second = aligned(layouts[1], first)
    directions = [layout[:20].mean(0) - layout[20:].mean(0) for layout in (first, second)]
    assert directions[0] @ directions[1] > 0.9 * math.prod(np.linalg.norm(d) for d in directions)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"--tables='beta' is unknown; did you mean 'betas'"):
        chosen(["beta"], ["betas", "sizes"], "tables")
