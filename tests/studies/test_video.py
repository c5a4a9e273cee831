"""The study of video: every cell can be trained, and its records become a table."""

import jax
import numpy as np
import pytest

from studies.common.records import Results
from studies.video.grid import ESTIMATORS, SETTINGS
from studies.video.report import document_parts
from studies.video.runs import run_config, study_runs
from vqjax.data.clips import ClipPlan
from vqjax.data.video_arrays import VideoArray
from vqjax.training.build import build_task, check_fits, example_batch

pytestmark = pytest.mark.full

CELLS = {run.name: run for run in study_runs(list(SETTINGS), list(ESTIMATORS), 1)}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_a_config_of_small_size(name):
    run = CELLS[name]
    config = run_config(run)
    assert (config.num_steps, config.seed) == (run.settings["steps"], 0)
    side, frames = config.data.image_size, config.data.frames
    clips = VideoArray("black", np.zeros((2, frames, side, side, 3), np.uint8), side, ClipPlan(frames))
    task = build_task(config, clips)
    state = check_fits(task, jax.random.key(0), example_batch(clips))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) < 1e6
    assert task.model.quantizer.estimator == run.settings["estimator"]


def test_records_become_a_table(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    assert "Not measured yet" in document_parts(results)["estimators"]
    for number, run in enumerate(study_runs(["vqvae"], ["straight_through", "rotation"], 2)):
        diverged = run.settings["estimator"] == "straight_through" and run.settings["seed"] == 1
        results.add(run, {"diverged": True} if diverged else {"diverged": False, "psnr": 20.0 + number}, seconds=1.0)
    table = document_parts(results)["estimators"]
    assert "| `straight_through` | 20" in table
    assert "1 of 2" in table
    assert "0 of 2" in table
