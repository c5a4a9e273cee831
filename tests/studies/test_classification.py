"""The study of quantizers inside classifiers: its cells can be built, and tables say what does not count."""

import numpy as np
import pytest

from studies.classification.grid import MODELS, QUANTIZERS, SCALES
from studies.classification.report import document_parts
from studies.classification.runs import run_config, study_runs
from studies.classification.trajectories import VARIANTS, measure_descent
from studies.common.records import Results, Run
from vqjax.models.registry import build_model


@pytest.mark.full
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_can_be_built(scale):
    runs = study_runs(MODELS, seeds=2, scale=scale)
    assert len(runs) == (len(MODELS) + 1) * len(QUANTIZERS)
    for run in runs:
        config = run_config(run)
        model = build_model(config.model, config.quantizer)
        assert len(model.quantizers) == (run.settings["quantizer"] != "none")
        assert config.num_steps == run.settings["steps"]


@pytest.mark.full
def test_alternating_and_synchronized_steps_bring_points_and_codes_lower():
    """The message of the paper's toy example; means over the starts."""
    ends = {name: measure_descent(VARIANTS[name]) for name in ("straight-through", "both")}
    for number in ("value_at_points", "value_at_codes", "quantization_error", "delay"):
        naive, both = (float(np.mean(of_variant[number])) for of_variant in ends.values())
        assert both < 0.8 * naive


def test_a_table_says_that_a_network_is_not_good_enough(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for model, accuracy in (("resnet18", 0.9), ("alexnet", 0.5)):
        settings = {"scale": "cpu", "model": model, "quantizer": "none", "seed": 0, "steps": 1}
        results.add(Run(f"cpu/{model}--none--seed0", settings), {"diverged": False, "top1": accuracy}, seconds=1.0)
    parts = document_parts(results)
    assert "**resnet18**\n" in parts["cpu"]
    assert "**alexnet**, below the 75 % that make its rows count" in parts["cpu"]
    assert parts["full"].startswith("Not measured yet")
