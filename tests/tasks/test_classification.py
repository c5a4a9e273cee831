"""Training of classifiers with quantizers between their layers."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import GradientCodebook, VectorQuantizer, quantizers
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.discovery import CheckpointInfo, find_checkpoint
from vqjax.data import load_splits, to_model_range
from vqjax.data.arrays import ArrayDataset
from vqjax.errors import UserError
from vqjax.evaluation.metrics import Classification
from vqjax.losses.classification import CrossEntropy
from vqjax.losses.reconstruction import MeanSquaredError
from vqjax.models.classifiers import ResNet18, ViT
from vqjax.models.lpips import perceptual_distance
from vqjax.tasks.classification import CLASSIFIER, ClassificationTask, mixed
from vqjax.tasks.registry import TASKS
from vqjax.training.build import build_task
from vqjax.training.config import validate
from vqjax.training.evaluate import _check_classes, evaluate_workdir
from vqjax.training.loop import train

CLASSES = 4


def labelled(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of one gray level for each class, with noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    images = 60 * labels[:, None, None, None] + random.integers(0, 30, (count, 16, 16, 3))
    return images.astype(np.uint8), labels.astype(np.int32)


DATA = ArrayDataset("gray levels", *labelled(8)[:1], image_size=16)


def batch_of(count: int = 8) -> dict[str, np.ndarray]:
    images, labels = labelled(count)
    return {"image": images, "label": labels}


def task_of(model=None, optimizer=None, loss=None, **options) -> ClassificationTask:
    return ClassificationTask(
        model or ViT(CLASSES, dim=8, depth=2, heads=1, mlp_dim=8),
        optimizer or optax.sgd(0.1),
        loss or CrossEntropy(DATA),
        **options,
    )


def learned(**options) -> VectorQuantizer:
    return VectorQuantizer(num_codes=8, codebook=GradientCodebook(weight=0.0), **options)


@pytest.fixture
def config(tmp_path, config):
    train_images, train_labels = labelled(48)
    test_images, test_labels = labelled(20, seed=1)
    path = tmp_path / "labelled.npz"
    np.savez(path, train=train_images, train_labels=train_labels, test=test_images, test_labels=test_labels)
    config.data = {"source": "arrays", "name": str(path), "image_size": 16}
    config.model = {"name": "resnet18", "width": 4, "num_classes": CLASSES}
    config.quantizer = {
        place: quantizers.defaults("vq", num_codes=64, codebook={"name": "ema", "dead_code_threshold": 0.1})
        for place in ("stage_1", "stage_3")
    }
    config.task = {"name": "classification", "mixup": 0.2, "ema_decay": 0.9}
    config.loss = {"name": "cross_entropy", "label_smoothing": 0.1}
    return config


@pytest.mark.full
def test_a_run_learns_classes_and_reports_accuracy_and_codes_by_place(config, tmp_path):
    config.num_steps = config.eval_every = config.checkpoint_every = 80
    config.task.mixup, config.task.ema_decay, config.optimizer.learning_rate = None, None, 1e-2
    metrics = train(config, tmp_path / "run", devices=jax.devices()[:1]).metrics
    assert metrics["top1"] > 0.8
    assert metrics["top1"] <= metrics["top5"] == 1
    assert {"usage_split_stage_1", "usage_split_stage_3", "cross_entropy"} <= set(metrics)
    assert 0 < metrics["usage_split_stage_1"] <= 1


@pytest.mark.full
def test_an_evaluation_has_no_reconstructions(config, tmp_path, capsys):
    config.num_steps = 1
    before = train(config, tmp_path / "run", devices=jax.devices()[:1]).metrics
    result = evaluate_workdir(tmp_path / "run")
    assert result.metrics["cross_entropy"] == pytest.approx(before["cross_entropy"], rel=1e-4)
    assert "top1" in result.intervals
    with pytest.raises(UserError, match="need the run of a tokenizer, got one of the task 'classification'"):
        evaluate_workdir(tmp_path / "run", export_tokens=tmp_path / "tokens.npz")
    with pytest.raises(UserError, match="must be the directory of a run that trains a tokenizer"):
        load_tokenizer(tmp_path / "run")
    info = find_checkpoint(tmp_path / "run")
    assert info.class_names == tuple("0123")


def test_labels_of_other_classes_are_refused():
    """Bug: labels were compared by their numbers, whatever they stood for."""
    info = CheckpointInfo(1, {}, "", "", {}, (None, None, 0), {}, ("bird", "cat", "dog"))
    images, labels = labelled(4)
    options = {"image_size": 16, "labels": labels % 2}
    _check_classes(info, ArrayDataset("all", images, **options, class_names=("bird", "cat", "dog")))
    with pytest.raises(UserError, match=r"must have the classes of the run, bird, cat, dog, .* got cat, dog; use"):
        _check_classes(info, ArrayDataset("two", images, **options, class_names=("cat", "dog")))


def test_scores_that_are_no_numbers_are_no_success():
    """Bug: all of them were the first choice."""
    outputs = {"logits": jnp.array([[jnp.nan, jnp.nan], [0.0, jnp.nan], [0.0, 1.0]]), "label": jnp.array([0, 0, 1])}
    assert Classification().per_image(outputs)["top1"].tolist() == [0, 0, 1]


@pytest.mark.full
@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_that_was_killed_ends_like_one_that_was_not(config, tmp_path, devices):
    devices = jax.devices()[:devices]
    whole = train(config, tmp_path / "whole", devices=devices)
    config.num_steps = 7
    train(config, tmp_path / "cut", devices=devices)
    config.num_steps = 12
    assert train(config, tmp_path / "cut", devices=devices).metrics == whole.metrics


@pytest.mark.full
def test_eight_devices_take_the_steps_of_one():
    """The statistics of batch norms are those of the global batch; the steps are so small that rounding stays small."""
    model = ResNet18(CLASSES, {"stage_2": VectorQuantizer(num_codes=8)}, width=4)
    task, batch = task_of(model, optax.sgd(1e-2)), batch_of(16)
    state = task.init(jax.random.key(0), batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shared = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    step = jax.jit(task.train_step)
    one, many = [], []
    for number in range(20):
        key = jax.random.key(number)
        state, metrics = step(state, batch, key)
        shared, of_many = step(shared, jax.device_put(batch, rows), key)
        one.append(float(metrics["loss"]))
        many.append(float(of_many["loss"]))
    np.testing.assert_allclose(many, one, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(state.variables), jax.tree.leaves(shared.variables), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_codes_take_steps_of_their_own_towards_the_features():
    model = ViT(CLASSES, {"block_1": learned(commitment_weight=0.0)}, dim=8, depth=2, heads=1, mlp_dim=8)
    batch, errors, codes = batch_of(), [], []
    for steps in (None, 5):
        task = task_of(model, codebook_steps=steps, codebook_learning_rate=5.0)
        state = task.init(jax.random.key(0), batch)
        start = state.params[CLASSIFIER]["quantizers_block_1"]["codes"]
        state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
        errors.append(float(metrics["quantization_error"]))
        codes.append(bool(jnp.any(state.params[CLASSIFIER]["quantizers_block_1"]["codes"] != start)))
    assert errors[1] < 0.9 * errors[0]
    assert codes == [False, True]


@pytest.mark.full
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_codes_start_from_clusters_of_each_place(codebook):
    quantized = {place: VectorQuantizer(num_codes=8, codebook=codebook) for place in ("block_1", "block_2")}
    task = task_of(ViT(CLASSES, quantized, dim=8, depth=2, heads=1, mlp_dim=8), kmeans_init=True)
    batch = batch_of(64)
    state = task.init(jax.random.key(0), batch)
    started = task.init_from_data(state, iter([batch] * 20), jax.random.key(1))
    step = jax.jit(task.train_step)
    for place in quantized:
        before, after = (step(x, batch, jax.random.key(2))[1][f"quantization_error_{place}"] for x in (state, started))
        assert after < before


def test_mixup_mixes_labels_as_images():
    images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 2, 2, 1))
    mixed_images, shares = mixed(jax.random.key(0), images, jnp.eye(4), alpha=1.0)
    np.testing.assert_allclose(shares @ jnp.arange(4.0), mixed_images[:, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(shares, axis=1), 1, rtol=1e-6)


def test_the_loss_with_smoothing_is_least_for_scores_of_the_smoothed_shares():
    loss, shares = CrossEntropy(DATA, label_smoothing=0.2), jnp.eye(4)[:1]
    least = jnp.log(0.8 * shares + 0.05)
    assert float(optax.tree.norm(jax.grad(loss)(least, shares))) < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task_of(loss=MeanSquaredError(DATA)), "loss config.loss.name=cross_entropy, got ViT and MeanSquared"),
        (lambda: task_of(mixup=0.0), "mixup must be a finite number above 0, got 0.0"),
        (lambda: task_of(ema_decay=1.0), "ema_decay must be above 0 and below 1, or None, got 1.0"),
        (lambda: task_of(ViT(CLASSES), kmeans_init=True), "kmeans_init must be False for a classifier without quant"),
        (lambda: task_of(ViT(CLASSES), codebook_steps=2), "codebook_steps must be None for a classifier without quant"),
        (lambda: task_of(codebook_steps=0), r"codebook_steps must be an integer in \[1, 1000\], got 0"),
        (
            lambda: task_of(ResNet18(quantizers={"stage_2": VectorQuantizer(num_codes=8)}), codebook_steps=1),
            "codebook_steps needs quantizers 'vq' with codebook.name='gradient' and codebook.weight=0, got another at "
            "stage_2",
        ),
        (lambda: CrossEntropy(DATA, label_smoothing=1.0), r"label_smoothing must be a number in \[0, 1\), got 1.0"),
        (lambda: CrossEntropy(DATA)(jnp.zeros((1, 4)), jnp.zeros((1, 5))), r"must be \[batch, classes\], got \(1, 4\)"),
        (lambda: task_of().init(jax.random.key(0), {"image": batch_of()["image"]}), "the data have no labels"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "vqvae"}}, "config.model.name must be that of an autoencoder for the task 'vqvae'"),
        ({"model.num_classes": 3}, "config.model.num_classes must be at least 4, the classes of"),
        ({"gradient_accumulation": 2}, "config.gradient_accumulation must be None for a classifier, got 2"),
        ({"loss": {"name": "mse"}}, "needs a classifier .* and the loss"),
        ({"optimizer": {"generator": {"name": "sgd"}}}, "config.optimizer must be one, .* got generator"),
        ({"quantizer": {"stage_9": {"name": "fsq", "levels": (3, 3)}}}, "places of ResNet18, got 'stage_9'"),
        (
            {"quantizer": {"name": "fsq", "levels": (3, 3)}},
            "config.quantizer must be a dictionary by place for the classifier",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(config, tmp_path, changes, message):
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        setattr(getattr(config, group) if group else config, field, value)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


def test_tasks_of_ones_own_are_told_by_the_types_of_their_arguments(config, monkeypatch):
    """Only the tasks of the package were built for classifiers, and with an optimizer for each network."""

    @dataclasses.dataclass(frozen=True)
    class OwnTask(ClassificationTask):
        optimizer: optax.GradientTransformation | Mapping[str, optax.GradientTransformation]

    monkeypatch.setitem(TASKS, "own", OwnTask)
    config.task, config.optimizer = {"name": "own"}, {CLASSIFIER: {"name": "sgd"}, "codes": {"name": "adam"}}
    config = validate(config)
    task = build_task(config, load_splits(config.data).train)
    assert isinstance(task, OwnTask)
    assert task.optimizer.keys() == {CLASSIFIER, "codes"}


@pytest.mark.full
def test_a_run_is_the_network_of_a_perceptual_loss_and_of_a_discriminator(config, tmp_path):
    config.num_steps = 1
    train(config, tmp_path / "run", devices=jax.devices()[:1])
    images = labelled(2)[0]
    of_run = {"name": "features", "file": str(tmp_path / "run")}
    config.model = {"name": "vqgan", "resolution": 16, "channels": 32, "multipliers": (1, 1), "num_res_blocks": 1}
    config.quantizer, config.loss = quantizers.defaults("vq", num_codes=8), {"name": "l1"}
    config.task = {"name": "vqgan", "perceptual": of_run | {"weight": 0.5}, "discriminator": of_run}
    task = build_task(validate(config), ArrayDataset("gray levels", images, image_size=16))
    batch, key = {"image": images}, jax.random.key(0)
    _, metrics = jax.eval_shape(task.train_step, jax.eval_shape(task.init, key, batch), batch, key)
    assert {"p_loss", "disc_loss"} <= set(metrics)

    network, variables = task.perceptual.module, task.perceptual.variables
    x, y = to_model_range(jnp.asarray(images)), -to_model_range(jnp.asarray(images))
    classifier = network.network.classifier
    own = {collection: tree["network"]["classifier"] for collection, tree in variables.items()}
    of_x, of_y = (list(classifier.apply(own, z, train=False).latents.values()) for z in (x, y))
    by_hand = perceptual_distance(of_x, of_y, [jnp.ones(z.shape[-1]) for z in of_x])
    assert len(of_x) == 4
    np.testing.assert_allclose(network.apply(variables, x, y), by_hand, rtol=1e-5)
    assert float(jnp.min(by_hand)) > 1e-3
