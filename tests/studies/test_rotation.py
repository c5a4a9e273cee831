"""The study of the rotation trick: every cell of its grid can be trained, and its mechanism is measured correctly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import rotation_matrix
from helpers.runs import tiny_config
from helpers.studies import killed_by_its_name
from studies.common.records import Record, Results, Run
from studies.common.trainings import make_runs
from studies.rotation.candidates import CANDIDATES, known_candidates
from studies.rotation.figures import scale_figure
from studies.rotation.grid import COMBINED, FRESH, REMEDIES
from studies.rotation.mechanism import pushes
from studies.rotation.report import document_parts
from studies.rotation.runs import STAGES, measure, measure_run, run_config, study_runs
from vqjax import IBQ, UserError, VectorQuantizer
from vqjax.estimators import keyword_names
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.registry import build_model

pytestmark = pytest.mark.full

CELLS = {run.name: run for run in study_runs(STAGES, ["sonnet"], 1)}


@pytest.mark.parametrize("name", CELLS)
@known_candidates()
def test_every_cell_is_a_config(name):
    run = CELLS[name]
    config = run_config(run)
    model = build_model(config.model, config.quantizer)
    variables = jax.eval_shape(
        model.init, {"params": jax.random.key(0), "quantizer": jax.random.key(1)}, jnp.zeros((1, 32, 32, 3))
    )
    quantizer = getattr(model.quantizer, "quantizer", model.quantizer)
    if run.settings["estimator"] == "index_backpropagation":
        assert isinstance(quantizer, IBQ)
    else:
        assert quantizer.estimator == run.settings["estimator"]
    assert quantizer.num_codes == 512
    assert variables
    assert (config.num_steps, config.seed) == (2000, run.settings["seed"])


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

    measured = pushes(model, variables, loss, [images, images])
    np.testing.assert_allclose(measured["code_push"], along(q), rtol=1e-4)
    np.testing.assert_allclose(measured["cost_of_quantization"], along(q - z), rtol=1e-4)
    slope = jax.grad(lambda s: 0.25 * jnp.mean(jnp.square((1 + s) * z - q)))(0.0)
    np.testing.assert_allclose(measured["commitment_pull"], slope, rtol=1e-4)
    np.testing.assert_allclose(measured["rms_codes"], np.sqrt(np.mean(np.square(q))), rtol=1e-5)
    np.testing.assert_allclose(measured["code_push_error"], 0, atol=1e-7)


def test_a_training_is_measured_and_reported(images_file, tmp_path):
    measured = measure(tiny_config(images_file), tmp_path / "run")
    assert {"psnr", "feature_distance", "late_relative_error", "code_push", "rms_latents"} <= measured.keys()
    results = Results(tmp_path / "results.jsonl")
    run = next(iter(CELLS.values()))
    assert "Not measured yet" in document_parts(results)["estimators"]
    results.add(Run(run.name, run.settings), measured, 1.0)
    parts = document_parts(results)
    assert all(f"{measured['psnr']:.4g}" in parts[name] for name in ("estimators", "remedies"))
    assert "`straight_through`" in parts["pushes"]


def test_trainings_run_at_once_and_one_that_fails_stops_no_other(tmp_path):
    settings = {"setting": "photographs", "remedy": "none", "seed": 0, "steps": 2}
    runs = [Run(f"photographs/{name}", settings | {"estimator": name}) for name in ("rotation", "unknown")]
    results = Results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match="1 of 2 trainings failed; the same command tries them again"):
        make_runs(runs, results, tmp_path / "runs", measure_run, jobs=2)
    assert [record.run for record in results.records()] == ["photographs/rotation"]
    assert results.unfinished(runs) == runs[1:]


def test_a_process_that_is_killed_fails_its_own_training_alone(tmp_path):
    """It ended the pool, and with it all trainings."""
    runs = [Run(name, {}) for name in ("a", "killed", "b", "c")]
    results = Results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match="1 of 4 trainings failed"):
        make_runs(runs, results, tmp_path / "runs", killed_by_its_name, jobs=2)
    assert {record.run for record in results.records()} == {"a", "b", "c"}


def trained_to(estimator, psnr, rms, seed=0, remedy="none"):
    settings = {"setting": "photographs", "estimator": estimator, "remedy": remedy, "seed": seed}
    return Record(f"{estimator}{seed}", settings, {"psnr": psnr, "rms_latents": rms}, 1.0)


def test_the_figure_shows_means_of_all_first_seeds():
    """It left out seeds below 21 dB, and kept those above, and mixed in the fresh ones."""
    records = [trained_to("rotation", psnr, rms, seed) for seed, (psnr, rms) in enumerate([(20.0, 1.0), (24.0, 3.0)])]
    records += [trained_to("diveq", 20.0, 0.1), trained_to("rotation", 30.0, 9.0, seed=FRESH)]
    (panel,) = scale_figure(records).axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in panel.lines] == [(2.0, 22.0)]


def test_candidates_have_their_jacobians():
    z, q, g = (jax.random.normal(jax.random.key(seed), (20, 8)) for seed in range(3))
    u, v = (np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True), np.float64) for x in (z, q))
    ratio = np.linalg.norm(q, axis=-1) / np.linalg.norm(z, axis=-1)
    middle = (u + v) / np.linalg.norm(u + v, axis=-1, keepdims=True)
    radial = np.einsum("ti,tj->tij", u, u)
    tangential = np.eye(8) - radial
    distance = np.linalg.norm(z - q, axis=-1)
    weight = (distance.min() / distance)[:, None, None] ** 2
    d = np.asarray(q - z, np.float64) / distance[:, None]

    def of_unused(used):
        """All latents have one of four codes, whose perplexity is a quarter of the most that it could be."""
        part = used * u + (1 - used) * v
        part /= np.linalg.norm(part, axis=-1, keepdims=True)
        scale = np.maximum(ratio, 0.2)[:, None, None] ** (used - 1)
        return scale * rotation_matrix(u, part) @ tangential + radial

    half = np.eye(8) - np.einsum("ti,tj->tij", d, d) / 2
    jacobians = {
        "half_tangential_rotation": rotation_matrix(u, middle) @ tangential + radial,
        "tangential_rotation_inverse": rotation_matrix(u, v) @ tangential / np.maximum(ratio, 0.2)[:, None, None]
        + radial,
        "dynamic_tangential_rotation": weight * (rotation_matrix(u, v) @ tangential + radial),
        "half_diveq": half,
        "tangential_half_diveq": (rotation_matrix(u, v) @ tangential + radial) @ half,
        "rotation_by_use": of_unused(0.25),
        "rotation_then_half_diveq": of_unused(0.25 / 0.7)
        @ (np.eye(8) - 0.25 / 0.7 / 2 * np.einsum("ti,tj->tij", d, d)),
    }
    settings = {"indices": jnp.zeros(20, jnp.int32), "num_codes": 4}
    for name, estimator in CANDIDATES.items():
        given = {key: value for key, value in settings.items() if key in keyword_names(estimator)}
        value, pullback = jax.vjp(lambda z, given=given, estimator=estimator: estimator(z, q, **given), z)
        np.testing.assert_array_equal(value, q)
        np.testing.assert_allclose(pullback(g)[0], np.einsum("tij,ti->tj", jacobians[name], g), rtol=1e-3, atol=1e-4)


def test_finalists_are_compared_by_pairs_of_fresh_seeds(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for seed in (0, 100, 101, 102):  # the first is not fresh
        for estimator, factor, usage in (("straight_through", 1.0, 0.9), ("half_diveq", 1.1, 1.0)):
            settings = {"setting": "sonnet", "estimator": estimator, "remedy": "none", "seed": seed, "steps": 2000}
            error = factor * (0.05 + 0.01 * seed)
            measured = {"diverged": False, "mse_over_variance": error, "feature_distance": 1.0, "usage_split": usage}
            measured |= dict.fromkeys(("code_push", "cost_of_quantization", "commitment_pull", "code_push_error"), 0.0)
            results.add(Run(f"sonnet/{estimator}--seed{seed}", settings), measured, 1.0)
    table = document_parts(results)["confirmation"]
    assert (
        "| sonnet | none | `half_diveq` | +10.0 [+10.0, +10.0] | +0.0 [+0.0, +0.0] | +10.0 [+10.0, +10.0] | 3 |"
        in table
    )
    assert "tangential" not in table
