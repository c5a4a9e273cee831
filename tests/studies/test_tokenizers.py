"""The study of tokenizers: every cell can be trained, and what is new in it measures what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.runs import tiny_config
from studies.common.records import Results, Run
from studies.common.trainings import train_and_evaluate
from studies.features.distance import FeatureDistance
from studies.tokenizers.grid import ESTIMATORS, SETTINGS
from studies.tokenizers.report import document_parts
from studies.tokenizers.runs import STAGES, run_config, study_runs
from studies.tokenizers.spectrum import LogSpectralDistance, log_spectral_distance
from vqjax.data.arrays import ArrayDataset
from vqjax.training.build import build_task, check_fits, example_batch

pytestmark = pytest.mark.full

CELLS = {run.name: run for run in study_runs(STAGES, list(SETTINGS), 1)}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_a_config_of_small_width(name):
    run = CELLS[name]
    config = run_config(run)
    assert (config.num_steps, config.seed) == (run.settings["steps"], 0)
    side = config.data.image_size
    images = ArrayDataset("black", np.zeros((2, side, side, 3), np.uint8), image_size=side)
    task = build_task(config, images)
    state = check_fits(task, jax.random.key(0), example_batch(images))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) < 6e6
    if "estimator" in run.settings:
        assert task.model.quantizer.estimator == run.settings["estimator"]
        assert len(CELLS) == len(SETTINGS) * len(ESTIMATORS) + 2


def test_the_spectral_distance_is_that_of_power_and_ignores_places():
    x = jax.random.uniform(jax.random.key(0), (2, 16, 24, 3), minval=-1)
    np.testing.assert_array_equal(log_spectral_distance(x, x), 0)
    # A tenth of the amplitude is 20 dB less at every frequency; the mirror image has the same spectrum.
    np.testing.assert_allclose(log_spectral_distance(x, x / 10), 20, rtol=1e-3)
    np.testing.assert_allclose(log_spectral_distance(x, x[:, ::-1, ::-1]), 0, atol=1e-3)


def test_the_spectral_distance_sees_blur_where_the_squared_error_prefers_it():
    x = jax.random.normal(jax.random.key(1), (1, 32, 32, 1))
    blurred = (x + jnp.roll(x, 1, axis=1) + jnp.roll(x, 1, axis=2) + jnp.roll(x, (1, 1), axis=(1, 2))) / 4
    other = jax.random.normal(jax.random.key(2), x.shape)
    assert jnp.mean(jnp.square(x - blurred)) < jnp.mean(jnp.square(x - other))
    assert log_spectral_distance(x, blurred)[0] > 1.3 * log_spectral_distance(x, other)[0]


def test_flat_images_have_a_finite_distance():
    assert np.isfinite(log_spectral_distance(jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3)))).all()


def test_a_training_is_measured_and_reported(images_file, tmp_path):
    metrics = [FeatureDistance.of("cifar10"), LogSpectralDistance()]
    trained = train_and_evaluate(tiny_config(images_file), tmp_path / "run", metrics=metrics, late=["loss"])
    measured = trained.measured
    assert {"psnr", "psnr_gain", "feature_distance", "log_spectral_distance", "late_loss"} <= measured.keys()
    results = Results(tmp_path / "results.jsonl")
    assert all("Not measured yet" in text for text in document_parts(results).values())
    for name in ("vqgan/rotation--seed0", "discriminator/with--seed0"):
        results.add(Run(name, CELLS[name].settings), measured, 1.0)
    parts = document_parts(results)
    assert "**vqgan**" in parts["estimators"]
    assert f"| with discriminator | {measured['log_spectral_distance']:.4g} |" in parts["discriminator"]
