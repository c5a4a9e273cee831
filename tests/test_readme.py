"""The examples of README.md and CONTRIBUTING.md run as printed, and the files that they name exist."""

import contextlib
import re
from pathlib import Path
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.tokenizers import state_dict
from helpers.torch_files import write_archive
from studies.features.weights import load_network
from vqjax.data.arrays import ArrayDataset
from vqjax.data.sources import SOURCES
from vqjax.losses.reconstruction import MeanSquaredError
from vqjax.losses.registry import LOSSES
from vqjax.models.registry import MODELS, build_model
from vqjax.quantizers.registry import QUANTIZERS
from vqjax.tasks.registry import TASKS
from vqjax.training.config import GROUPS, base_config, complete
from vqjax.training.loop import train

ROOT = Path(__file__).parents[1]
PLACES = ("", "docs/", "docs/tutorials/", "benchmarks/")
PAGES = [str(page.relative_to(ROOT)) for place in PLACES for page in sorted(ROOT.glob(f"{place}*.md"))]


def run_examples(page, number, **names):
    names |= {"__name__": page}
    examples = re.findall(r"<!-- tested -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(examples) == number
    for code in examples:
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.full
def test_the_examples_of_the_readme_run_and_keep_their_promises():
    names = run_examples("README.md", 5)
    assert (names["vectors"] == names["evaluated"].quantized).all()
    assert names["losses"][-1] < names["losses"][0]
    assert names["out"].indices.shape == (8, 16, 16)


@pytest.mark.full
def test_the_model_of_the_linen_tutorial_learns_and_keeps_its_codes_in_use():
    names = run_examples("docs/tutorials/linen.md", 5)
    first, last = names["history"][0], names["history"][-1]
    assert last["error"] < 0.25 * first["error"]
    assert last["usage"] > 0.8
    assert names["tokens"].shape == (8, 4, 4)
    np.testing.assert_allclose(names["restored"], names["evaluated"], atol=1e-6)
    chex.assert_trees_all_equal(names["loaded"], names["trained"])


@pytest.mark.full
def test_the_examples_of_other_libraries_settings_are_those_settings(tmp_path, monkeypatch):
    write_archive(tmp_path / "vqgan_imagenet_f16_1024.ckpt", {"state_dict": state_dict()})
    monkeypatch.chdir(tmp_path)
    names = run_examples("docs/coming-from.md", 6, images=jnp.zeros((2, 16, 16, 3)))
    vqgan = names["vqgan"]
    assert (vqgan.commitment_weight, vqgan.codebook.weight) == (1.0, 0.25)
    z = jax.random.normal(jax.random.key(0), (12, 8))
    codes = vqgan.init(jax.random.key(0), z)["params"]["codes"]
    assert float(jnp.max(jnp.abs(codes))) <= 1 / 1024
    for name in ("maskgit", "dvae"):
        quantizer, key = names[name].clone(num_codes=16), jax.random.key(1)
        variables = quantizer.init(key, z)
        out, _ = quantizer.apply(variables, z, train=True, mutable=["codebook"], rngs={"quantizer": key})
        assert jnp.isfinite(out.loss)
    assert names["indices"].shape == (2, 75, 2)
    assert names["vectors"].shape == names["z"].shape
    assert names["rvq"].apply(names["variables"], z, method="encode").shape == (12, 4)


@pytest.mark.full
def test_the_world_model_in_nnx_learns_and_its_tokens_are_its_frames():
    names = run_examples("docs/nnx-world-model.md", 4)
    assert names["history"][-1] < 0.5 * names["history"][0]
    assert names["tokens"].shape == (4, 8, 8)
    model, frames = names["model"], names["squares"](jax.random.key(300), 4)
    np.testing.assert_allclose(model.decode(model.encode(frames)), model(frames, train=False)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(names["table"].shape, (64, 16))
    assert jnp.isfinite(names["value"])


@pytest.mark.full
def test_the_speech_model_in_equinox_learns_and_its_codebook_is_state():
    names = run_examples("docs/equinox.md", 4)
    assert names["history"][-1] < 0.5 * names["history"][0]
    model, state, frames = names["model"], names["state"], names["frames"]
    reconstruction, out, unchanged = model(frames, state, inference=True)
    np.testing.assert_array_equal(names["tokens"], out.indices)
    np.testing.assert_allclose(names["restored"], reconstruction, rtol=1e-5, atol=1e-5)
    assert unchanged is state
    error = {name: float(jnp.mean((names[name] - frames) ** 2)) for name in ("coarse", "restored")}
    assert error["restored"] < error["coarse"]


@pytest.mark.full
def test_frozen_networks_are_discriminators_and_distances():
    images, network = jnp.zeros((2, 32, 32, 3)), load_network("cifar10")
    names = run_examples(
        "docs/options.md",
        2,
        images=images,
        reconstructions=images + 0.1,
        vision_transformer=network.module,
        its_variables=network.variables,
        model=build_model({"name": "vqgan", "channels": 32, "multipliers": (1, 1)}, {"name": "vq", "num_codes": 8}),
        optimizer={"generator": optax.adam(1e-3), "discriminator": optax.adam(1e-3)},
        loss=MeanSquaredError(ArrayDataset("gray", np.zeros((2, 32, 32, 3), np.uint8), 32)),
    )
    assert names["distances"].shape == (2,)


@pytest.mark.full
def test_clips_pass_through_a_tokenizer_in_parts():
    names = run_examples("docs/video.md", 1)
    assert names["indices"].shape[:2] == (1, 3)
    assert names["frames"].shape == (1, 4, 32, 32, 3)


def test_every_page_with_examples_is_run_by_a_test():
    """Bug: that of docs/video.md was marked as tested, and was not."""
    called = set(re.findall(r'run_examples\(\s*"([\w./-]+\.md)"', Path(__file__).read_text()))
    assert called == {page for page in PAGES if "<!-- tested -->" in (ROOT / page).read_text()} | {"CONTRIBUTING.md"}


def test_the_example_of_the_site_runs():
    assert run_examples("docs/index.md", 1)["out"].indices.shape == (8, 16, 16)


@pytest.mark.parametrize(("page", "number"), [("docs/options.md", 2), ("docs/classification.md", 1)])
def test_parts_of_configs_have_fields_that_exist(page, number):
    parts = re.findall(r"<!-- config -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(parts) == number
    for code in parts:
        config = base_config().unlock()
        config.num_steps = 1
        exec(compile(code, page, "exec"), {"config": config})
        complete(config)


def test_no_example_is_left_out():
    for page in PAGES:
        found = re.findall(r"(.*)\n```python\n", (ROOT / page).read_text())
        marked = r"<!-- (tested|run|config|file: [\w.]+) -->"
        assert all(re.fullmatch(marked, before) for before in found), page


@pytest.mark.full
def test_tokens_are_drawn_from_a_transformer_of_ones_own():
    names = run_examples("docs/generation.md", 1)
    assert names["tokens"].shape == (4, 64)
    # An untrained one draws all codes alike.
    assert len(set(names["tokens"].ravel().tolist())) > 150


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_it_names_exists(page):
    text = (ROOT / page).read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#:]*)(?:#([^)]*))?\)", text):
        file = (ROOT / page).parent / link if link else ROOT / page
        assert file.exists(), link
        assert not anchor or anchor in headings(file), f"{link}#{anchor}"


def headings(page):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.full
def test_the_examples_for_contributors_train_a_model(tmp_path):
    with contextlib.ExitStack() as stack:
        for registry in (QUANTIZERS, MODELS, LOSSES, SOURCES, TASKS, GROUPS["data"]):
            stack.enter_context(mock.patch.dict(registry))
        names = run_examples("CONTRIBUTING.md", 12)
        GROUPS["data"].update(SOURCES)
        config = names["get_config"]()
        config.num_steps, config.batch_size, config.tensorboard = 2, 8, False
        config.task = {"name": "brightening", "amount": 4}
        config.data = {"source": "stripes", "image_size": 16, "count": 64}
        config.model = {"name": "patches", "width": 4}
        config.quantizer = {"name": "ternary", "features": 4}
        config.loss = {"name": "huber", "delta": 2.0}
        metrics = train(config, tmp_path, devices=jax.devices()[:1]).metrics
    assert metrics["images"] == 8
    metric = names["MeanAbsoluteError"]()
    outputs = {"image": jnp.full((2, 4, 4, 3), 255, jnp.uint8), "reconstruction": jnp.zeros((2, 4, 4, 3))}
    measured = metric.measure(outputs | {"valid": jnp.array([True, False])})
    assert metric.compute(metric.update(metric.init(), measured)) == {"mae_pm1": 1.0}
