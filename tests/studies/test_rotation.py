"""The study of the rotation trick: every cell of its grid can be trained, and its mechanism is measured correctly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.runs import tiny_config
from studies.common.records import Results, Run
from studies.rotation.grid import COMBINED, REMEDIES
from studies.rotation.mechanism import pushes
from studies.rotation.report import document_parts
from studies.rotation.runs import config_of, measure, study_runs
from vqjax import VectorQuantizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.registry import build_model

pytestmark = pytest.mark.full

CELLS = {run.name: run for run in study_runs(["sonnet"], 1)}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_a_config(name):
    run = CELLS[name]
    config = config_of(run)
    model = build_model(config.model, config.quantizer)
    variables = jax.eval_shape(
        model.init, {"params": jax.random.key(0), "quantizer": jax.random.key(1)}, jnp.zeros((1, 32, 32, 3))
    )
    quantizer = getattr(model.quantizer, "quantizer", model.quantizer)
    assert quantizer.estimator == run.settings["estimator"]
    assert quantizer.num_codes == 512
    assert variables
    assert (config.num_steps, config.seed) == (2000, 0)


def test_the_grid_is_complete():
    combined = {(run.settings["estimator"], run.settings["remedy"]) for run in CELLS.values()}
    assert combined >= {(estimator, remedy) for estimator in COMBINED for remedy in REMEDIES}


def test_the_pushes_are_derivatives_by_the_scale_of_the_codes():
    r"""The derivative of :math:`L(s q)` by s is <q, g>; that of :math:`L(q + s (q - z))` is <q - z, g>."""
    model = VQVAE(SonnetEncoder(8, 1, 4), VectorQuantizer(8), SonnetDecoder(8))
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    variables = model.init({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, images)

    def loss(x, y):
        return jnp.mean(jnp.square(x - y))

    z = model.apply(variables, images, train=False, method="latents")
    q = model.apply(variables, images, train=False).quantizer.quantized

    def along(direction):
        def value(s):
            return loss(model.apply(variables, q + s * direction, train=False, method="decode_latents"), images)

        return jax.grad(value)(0.0)

    measured = pushes(model, variables, loss, [images, images], commitment_weight=0.25)
    np.testing.assert_allclose(measured["code_push"], along(q), rtol=1e-4)
    np.testing.assert_allclose(measured["cost_of_quantization"], along(q - z), rtol=1e-4)
    slope = jax.grad(lambda s: 0.25 * jnp.mean(jnp.square((1 + s) * z - q)))(0.0)
    np.testing.assert_allclose(measured["commitment_pull"], slope, rtol=1e-4)
    np.testing.assert_allclose(measured["rms_codes"], np.sqrt(np.mean(np.square(q))), rtol=1e-5)
    np.testing.assert_allclose(measured["code_push_error"], 0, atol=1e-7)


def test_a_training_is_measured_and_reported(images_file, tmp_path):
    measured = measure(tiny_config(images_file), tmp_path / "run")
    assert {"psnr", "late_relative_error", "code_push", "rms_latents"} <= measured.keys()
    results = Results(tmp_path / "results.jsonl")
    run = next(iter(CELLS.values()))
    assert "Not measured yet" in document_parts(results)["estimators"]
    results.add(Run(run.name, run.settings), measured, 1.0)
    parts = document_parts(results)
    assert all(f"{measured['psnr']:.4g}" in parts[name] for name in ("estimators", "remedies"))
    assert "`straight_through`" in parts["pushes"]
