"""The VQ-VAE task: its steps by their numbers, its start from data, and what it evaluates."""

import functools
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import FSQ, EMACodebook, GradientCodebook, Replacement, Residual, VectorQuantizer
from vqjax.data import UnreadableImage, augment
from vqjax.data.batches import first_epoch_batches
from vqjax.errors import UserError
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.tokenizer import NETWORK
from vqjax.tasks.vqvae import VQVAETask, image_metrics
from vqjax.training.optimizer import build_optimizer


def model_of(quantizer: nn.Module, width: int = 8, latent_dim: int = 4) -> VQVAE:
    encoder = SonnetEncoder(width=width, num_residual_blocks=1, latent_dim=latent_dim)
    return VQVAE(encoder, quantizer, SonnetDecoder(width=width, num_residual_blocks=1))


def squared_error(scale: float):
    return lambda reconstruction, images: scale * jnp.mean(jnp.square(reconstruction - images))


def compiled(task: VQVAETask, seed: int = 0):
    """The task's step with the keys of the trainer."""
    key = jax.random.key(seed)
    return jax.jit(lambda state, batch: task.train_step(state, batch, jax.random.fold_in(key, state.step)))


@pytest.fixture(scope="module")
def step(batch):
    augmentation = functools.partial(augment, flip=True, crop_padding=2)
    task = VQVAETask(model_of(VectorQuantizer(num_codes=16)), optax.adam(1e-2), squared_error(2.0), augmentation)
    return task.init(jax.random.key(0), batch), compiled(task)


@pytest.fixture(scope="module")
def batch():
    colors = np.random.default_rng(0).integers(0, 256, (8, 1, 2, 3), dtype=np.uint8)
    return {"image": colors.repeat(8, axis=2).repeat(16, axis=1)}


def test_the_loss_is_the_scaled_reconstruction_error_plus_commitment(step, batch):
    state, train = step
    _, metrics = train(state, batch)
    expected = 2.0 * metrics["reconstruction_mse"] + 0.25 * metrics["commitment_loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_a_step_moves_parameters_and_codebook_and_leaves_the_sums_of_the_log(step, batch):
    state, train = step
    after, _ = train(state, batch)
    assert int(after.step) == 1
    assert after.log_sums == state.log_sums
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.trained(NETWORK), after.trained(NETWORK))
    assert all(jax.tree.leaves(moved["params"]))
    assert moved["codebook"]["quantizer"].keys() == {"codes", "counts", "sums", "relative_usage"}
    assert all(jax.tree.leaves(moved["codebook"]))


def test_randomness_depends_on_the_step_alone(step, batch):
    state, train = step
    first, second = train(state, batch)[1], train(state, batch)[1]
    later = train(state.replace(step=state.step + 1), batch)[1]
    assert float(first["loss"]) == float(second["loss"])
    assert float(first["loss"]) != float(later["loss"])


def test_training_lowers_the_loss(step, batch):
    state, train = step
    losses = []
    for _ in range(100):
        state, metrics = train(state, batch)
        losses.append(float(metrics["reconstruction_mse"]))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


OLD_CODEBOOKS = {
    "ema": EMACodebook(dead_code_threshold=0.9, replace=Replacement(0.9)),
    "gradient": GradientCodebook(dead_code_threshold=0.9, replace=Replacement(0.9), sync_nu=0.3),
}
NEW_NAMES = {"usage": "relative_usage"}


def old_arrays(quantizer: str, part: str) -> dict[str, np.ndarray]:
    """Five steps of release 0.1.0: the initial state, the metrics of each step, or the final state."""
    with np.load(Path(__file__).parent / "five_steps_of_release_0_1_0.npz") as archive:
        prefix = f"{quantizer}/{part}/"
        return {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def named(state) -> dict[str, np.ndarray]:
    """Parameters and variables of the autoencoder by the names that they had in release 0.1.0."""
    trees = {"params": state.params[NETWORK], "variables": state.variables[NETWORK]}
    arrays = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}
    old = {new: name for name, new in NEW_NAMES.items()}
    return {"/".join(old.get(part, part) for part in name.split("/")): array for name, array in arrays.items()}


@pytest.mark.full
@pytest.mark.parametrize("name", OLD_CODEBOOKS)
def test_five_steps_are_those_of_the_release_before_tasks(name):
    """From the same seed, with augmentation, random replacement of codes, and the default optimizer.

    On one machine, with the same options of the compiler, all numbers are the same bits; others add in another order.
    """
    task = VQVAETask(
        model_of(
            VectorQuantizer(num_codes=8, codebook=OLD_CODEBOOKS[name], estimator="rotation"), width=4, latent_dim=2
        ),
        build_optimizer({"name": "adam", "learning_rate": 1e-2}, num_steps=5),
        squared_error(1.7),
        functools.partial(augment, flip=True, crop_padding=2),
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 16, 16, 3), dtype=np.uint8)
    state, train = task.init(jax.random.key(3), {"image": images[0]}), compiled(task, seed=3)
    chex.assert_trees_all_close(named(state), old_arrays(name, "initial"), rtol=1e-6, atol=1e-7)
    recorded = old_arrays(name, "metrics")
    for number, of_step in enumerate(images):
        state, metrics = train(state, {"image": of_step})
        for metric, values in recorded.items():
            np.testing.assert_allclose(metrics[metric], values[number], rtol=1e-4, atol=1e-6, err_msg=metric)
    chex.assert_trees_all_close(named(state), old_arrays(name, "final"), rtol=1e-4, atol=1e-5)


class NormalizedDecoder(nn.Module):
    """A decoder with running statistics, power iteration and dropout."""

    @nn.compact
    def __call__(self, codes, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(codes))
        x = nn.SpectralNorm(nn.Dense(8))(nn.relu(x), update_stats=train)
        return SonnetDecoder(width=8, num_residual_blocks=1)(nn.Dropout(0.5, deterministic=not train)(x))


def test_the_use_of_each_stage_s_codes_is_logged_and_evaluated(batch):
    quantizer = Residual(VectorQuantizer(num_codes=8), num_quantizers=2, stage_sizes=(8, 4))
    task = VQVAETask(model_of(quantizer), optax.adam(1e-2), squared_error(2.0))
    state = jax.eval_shape(task.init, jax.random.key(0), batch)
    _, logged = jax.eval_shape(task.train_step, state, batch, jax.random.key(1))
    evaluated = {name for metric in task.metrics if hasattr(metric, "protocol") for name in metric.protocol}
    for name in ("perplexity", "usage", "dead_codes"):
        assert {name, f"{name}_0", f"{name}_1"} <= set(logged)
        assert {f"{name}_split", f"{name}_split_0", f"{name}_split_1"} <= evaluated


@pytest.mark.full
def test_a_decoder_with_state_of_its_own_trains_in_the_same_step(batch):
    """Bug: the decoder was applied with nothing but parameters."""
    model = model_of(VectorQuantizer(num_codes=16)).clone(decoder=NormalizedDecoder())
    task = VQVAETask(model, optax.adam(1e-2), squared_error(1.0))
    state = task.init(jax.random.key(0), batch)
    after, _ = compiled(task)(state, batch)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.variables[NETWORK], after.variables[NETWORK])
    assert moved.keys() == {"codebook", "batch_stats"}
    assert all(jax.tree.leaves(moved))
    evaluation = {**batch, "valid": np.ones(8, bool)}
    evaluate = jax.jit(task.evaluate)
    chex.assert_trees_all_equal(*(evaluate(after, evaluation) for _ in range(2)))


@pytest.mark.full
def test_averaged_parameters_are_evaluated_in_the_place_of_the_trained_ones(batch):
    task = VQVAETask(model_of(VectorQuantizer(num_codes=16)), optax.adam(1e-2), squared_error(1.0), ema_decay=0.75)
    state, train = task.init(jax.random.key(0), batch), compiled(task)
    average = state.params[NETWORK]
    for _ in range(2):
        state, _ = train(state, batch)
        average = jax.tree.map(lambda mean, new: 0.75 * mean + 0.25 * new, average, state.params[NETWORK])
    chex.assert_trees_all_close(state.ema_params[NETWORK], average, rtol=1e-5, atol=1e-7)
    evaluation = {**batch, "valid": np.ones(8, bool)}
    evaluate = jax.jit(task.evaluate)
    averaged = state.replace(params=state.ema_params, ema_params=None)
    chex.assert_trees_all_equal(evaluate(state, evaluation), evaluate(averaged, evaluation))
    trained = evaluate(state.replace(ema_params=None), evaluation)
    assert np.any(trained["reconstruction"] != evaluate(state, evaluation)["reconstruction"])


@pytest.mark.parametrize("ema_decay", [0.0, 1.0, -0.5])
def test_a_decay_of_the_average_that_is_none_is_refused(ema_decay):
    with pytest.raises(UserError, match=f"ema_decay must be above 0 and below 1, or None, got {ema_decay}"):
        VQVAETask(model_of(VectorQuantizer(num_codes=16)), optax.sgd(0.1), squared_error(1.0), ema_decay=ema_decay)


@pytest.mark.parametrize(
    ("quantizer", "field"),
    [
        (VectorQuantizer(16), "--config.quantizer.codebook.replace.below=0.1 "),
        (VectorQuantizer(16, codebook="gradient"), "--config.quantizer.codebook.replace.below=0.1 "),
        (Residual(VectorQuantizer(16), 2), "--config.quantizer.quantizer.codebook.replace.below=0.1 "),
        (VectorQuantizer(16, codebook=EMACodebook(replace=Replacement(below=0.1))), None),
        (VectorQuantizer(16, codebook="frozen"), None),
        (FSQ((4, 4)), None),
    ],
)
def test_where_codes_lie_idle_the_field_that_replaces_them_is_named(quantizer, field):
    task = VQVAETask(model_of(quantizer), optax.sgd(0.1), squared_error(1.0))
    assert task.advice({"usage_split": 0.5}) is None
    advice = task.advice({"usage_split": 0.27})
    assert advice is None if field is None else advice.startswith(f"only 27 % of the codes are in use: {field}")


class SomeBroken:
    """40 images of random colors, every third of which cannot be read."""

    name, class_names = "some broken", None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index % 3 == 0:
            raise UnreadableImage(f"{index}.png", "broken on purpose")
        color = np.random.default_rng(index).integers(0, 256, (1, 1, 3), dtype=np.uint8)
        return {"image": color.repeat(16, axis=0).repeat(16, axis=1)}


@pytest.mark.full
@pytest.mark.parametrize("batch_size", [8, 40])
def test_unreadable_images_do_not_keep_the_codebook_from_being_started(batch, batch_size):
    """Bug: a batch with one unreadable image was left out, and with it, usually, all batches."""
    model = model_of(VectorQuantizer(num_codes=4))
    task = VQVAETask(model, optax.sgd(0.1), squared_error(1.0), kmeans_init=True)
    state = task.init(jax.random.key(0), batch)
    batches = first_epoch_batches(SomeBroken(), seed=0, batch_size=batch_size)
    started = task.init_from_data(state, batches, jax.random.key(1)).variables[NETWORK]["codebook"]["quantizer"]
    assert (started["codes"] != state.variables[NETWORK]["codebook"]["quantizer"]["codes"]).all()
    # 64 latents per code, which are two batches of 8 images of 16 latents; or all 26 readable images.
    assert float(started["counts"].sum()) == (256 if batch_size == 8 else 26 * 16)


@pytest.mark.full
def test_codes_that_are_parameters_start_from_clusters_too(batch):
    model = model_of(VectorQuantizer(num_codes=4, codebook="gradient"))
    task = VQVAETask(model, optax.sgd(0.1), squared_error(1.0), kmeans_init=True, ema_decay=0.9)
    state = task.init(jax.random.key(0), batch)
    started = task.init_from_data(state, iter([batch]), jax.random.key(1))
    chex.assert_trees_all_equal_shapes(started, state)
    assert (started.params[NETWORK]["quantizer"]["codes"] != state.params[NETWORK]["quantizer"]["codes"]).all()
    chex.assert_trees_all_equal(started.ema_params, started.params)
    del state.params[NETWORK]["quantizer"], started.params[NETWORK]["quantizer"]
    chex.assert_trees_all_equal(started.params, state.params)


def test_a_quantizer_without_a_start_from_data_is_refused():
    with pytest.raises(UserError, match="kmeans_init must be False for the quantizer FSQ, got True"):
        VQVAETask(model_of(FSQ(levels=(4, 4))), optax.sgd(0.1), squared_error(1.0), kmeans_init=True)


def test_a_perfect_reconstruction_has_the_largest_psnr_of_an_evaluation():
    images = jnp.ones((1, 4, 4, 3))
    assert float(image_metrics(images, images)["psnr"]) == 100.0
    np.testing.assert_allclose(image_metrics(images - 0.02, images)["psnr"], 40.0, rtol=1e-5)
