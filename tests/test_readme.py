"""The examples of README.md and CONTRIBUTING.md run as printed, and the files that they name exist."""

import contextlib
import re
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from vqjax.data.sources import SOURCES
from vqjax.losses.registry import LOSSES
from vqjax.models.registry import MODELS
from vqjax.quantizers.registry import QUANTIZERS
from vqjax.tasks.registry import TASKS
from vqjax.training.config import GROUPS
from vqjax.training.loop import train

ROOT = Path(__file__).parents[1]
PAGES = [str(page.relative_to(ROOT)) for place in ("", "docs/", "benchmarks/") for page in ROOT.glob(f"{place}*.md")]


def run_examples(page, number):
    names = {"__name__": page}
    examples = re.findall(r"<!-- tested -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(examples) == number
    for code in examples:
        exec(compile(code, page, "exec"), names)
    return names


def test_the_examples_of_the_readme_run_and_keep_their_promises():
    names = run_examples("README.md", 3)
    evaluated = names["vq"].apply(names["variables"], names["z"], train=False)
    assert (names["vectors"] == evaluated.quantized).all()
    assert names["out"].indices.shape == (8, 16, 16)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_exists(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (folder / link).exists(), link


def test_the_examples_for_contributors_train_a_model(tmp_path):
    with contextlib.ExitStack() as stack:
        for registry in (QUANTIZERS, MODELS, LOSSES, SOURCES, TASKS, GROUPS["data"]):
            stack.enter_context(mock.patch.dict(registry))
        names = run_examples("CONTRIBUTING.md", 8)
        GROUPS["data"].update(SOURCES)
        config = names["get_config"]()
        config.num_steps, config.batch_size, config.tensorboard = 2, 8, False
        config.task = {"name": "brightening", "amount": 4}
        config.data = {"source": "stripes", "image_size": 16, "count": 64}
        config.model = {"name": "patches", "width": 4}
        config.quantizer = {"name": "ternary", "features": 4}
        config.loss = {"name": "l1", "weight": 2.0}
        metrics = train(config, tmp_path, devices=jax.devices()[:1]).metrics
    assert metrics["images"] == 8
    metric = names["MeanAbsoluteError"]()
    outputs = {"image": jnp.full((2, 4, 4, 3), 255, jnp.uint8), "reconstruction": jnp.zeros((2, 4, 4, 3))}
    measured = metric.measure(outputs | {"valid": jnp.array([True, False])})
    assert metric.compute(metric.update(metric.init(), measured)) == {"mae_pm1": 1.0}
