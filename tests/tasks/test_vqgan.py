"""Adversarial training: both networks in one step, exactly weighted, and continued exactly."""

import functools
import json
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from vqjax import UserError, VectorQuantizer
from vqjax.checkpointing.checkpoints import load_networks, load_tokenizer
from vqjax.data import to_model_range
from vqjax.data.arrays import ArrayDataset
from vqjax.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight, r1_penalty
from vqjax.losses.perceptual import PerceptualLoss
from vqjax.models import AlexNet
from vqjax.models.discriminators import PatchGAN, PatchGAN3D, StyleGANDiscriminator
from vqjax.models.feature_discriminator import FeatureDiscriminator, FrozenNetwork
from vqjax.models.lpips import LPIPS
from vqjax.models.registry import build
from vqjax.models.tokenizer import NETWORK
from vqjax.reporting import MetricWriter
from vqjax.tasks.vqgan import DISCRIMINATOR, VQGANTask
from vqjax.training.build import build_task
from vqjax.training.config import base_config, validate
from vqjax.training.loop import train

pytestmark = pytest.mark.full

KEY = jax.random.key(3)
SIZE = {"channels": 32, "multipliers": (1, 1), "num_res_blocks": 1, "attention_resolutions": (), "latent_dim": 4}
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)}


def squared_error(reconstruction, images):
    return jnp.mean(jnp.square(reconstruction - images))


def make(model="vqgan", **options):
    size = SIZE | {"middle_attention": False} if model == "vqgan" else {"width": 8, "latent_dim": 4}
    networks = build(name=model, **size, quantizer=VectorQuantizer(16))
    options = {"discriminator": PatchGAN(channels=4, num_layers=1)} | options
    return VQGANTask(networks, options.pop("optimizer", optax.sgd(0.1)), squared_error, **options)


@pytest.fixture(scope="module")
def started():
    return jax.jit(make().init)(KEY, BATCH)


def step_of(task, state):
    return jax.jit(task.train_step)(state, BATCH, jax.random.key(5))


@pytest.fixture(scope="module")
def stepped(started):
    return step_of(make(), started)


def test_the_gradient_is_that_of_the_weighted_sum(started, stepped):
    """Beside plain differentiation of the whole loss, with the adaptive weight held constant."""
    task, (after, metrics) = make(), stepped
    images = to_model_range(jnp.asarray(BATCH["image"]))
    variables = started.variables[NETWORK]

    def losses(params):
        output, _ = task.model.apply(
            {"params": params, **variables},
            images,
            train=True,
            mutable=list(variables),
            rngs={"quantizer": KEY},
        )
        logits, _ = task.discriminator.apply(
            started.trained(DISCRIMINATOR), output.reconstruction, train=True, mutable=["batch_stats"]
        )
        reconstruction = squared_error(output.reconstruction, images)
        return reconstruction, ADVERSARIAL_LOSSES["hinge"].generator(logits), output.quantizer.loss

    params = started.params[NETWORK]
    separate = [jax.jit(jax.grad(lambda params, i=i: losses(params)[i]))(params) for i in range(3)]
    weight = 0.8 * adaptive_weight(*(gradient["decoder"]["conv_out"]["kernel"] for gradient in separate[:2]))
    np.testing.assert_allclose(metrics["d_weight"], weight, rtol=1e-4)
    expected = jax.tree.map(lambda a, b, c: a + weight * b + c, *separate)
    moved = jax.tree.map(lambda before, after: (before - after) / 0.1, params, after.params[NETWORK])
    chex.assert_trees_all_close(moved, expected, rtol=1e-2, atol=1e-4)
    reconstruction, adversarial, quantizer = losses(params)
    np.testing.assert_allclose(metrics["loss"], reconstruction + weight * adversarial + quantizer, rtol=1e-4)


@pytest.mark.parametrize(("real", "fake"), [(5.0, -5.0), (-5.0, 5.0)])
def test_lecam_holds_real_logits_at_the_average_of_the_others(started, real, fake):
    """Bug: the averages of real and generated images were swapped."""
    task = make(lecam_weight=0.1)
    means = {"logit_means": {"real": jnp.float32(real), "fake": jnp.float32(fake)}}
    of_discriminator = started.variables[DISCRIMINATOR] | means
    state = started.replace(variables=started.variables | {DISCRIMINATOR: of_discriminator})
    after, metrics = step_of(task, state)
    # The logits of a discriminator that has not learnt are small.
    assert abs(metrics["logits_real"]) < 0.5 > abs(metrics["logits_fake"])
    expected = max(0, metrics["logits_real"] - fake) ** 2 + max(0, real - metrics["logits_fake"]) ** 2
    np.testing.assert_allclose(metrics["lecam"], expected, rtol=0.05)
    moved = after.variables[DISCRIMINATOR]["logit_means"]
    assert abs(moved["real"]) < abs(real)
    assert abs(moved["fake"]) < abs(fake)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "residual", "max_adaptive_weight": None},
        {"lecam_weight": 0.1},
        {"discriminator": StyleGANDiscriminator(channels=(4, 4, 4)), "r1_weight": 1.0},
    ],
)
def test_a_step_is_in_32_bits_whatever_the_default_is(options):
    """Parameters of layers of our own had 64 bits, and a step with the penalty R1 failed."""
    task = make(**options)
    with jax.enable_x64(True):
        state = jax.eval_shape(task.init, KEY, BATCH)
        after = jax.eval_shape(task.train_step, state, BATCH, KEY)
    assert not [leaf for leaf in jax.tree.leaves((state, after)) if leaf.dtype in (jnp.float64, jnp.int64)]
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after[0])


@pytest.mark.parametrize(
    ("flag", "value"),
    [("jax_numpy_dtype_promotion", "strict"), ("jax_default_prng_impl", "rbg")],
)
@pytest.mark.parametrize(
    "options",
    [
        {"lecam_weight": 0.1, "ema_decay": 0.9},
        {"discriminator": StyleGANDiscriminator(channels=(4, 4, 4)), "r1_weight": 1.0, "order": "generator_first"},
    ],
)
def test_flags_of_jax_stop_no_step(options, flag, value, request):
    request.addfinalizer(functools.partial(jax.config.update, flag, getattr(jax.config, flag)))
    jax.config.update(flag, value)
    task, key = make(**options), jax.random.key(0)
    state = jax.eval_shape(task.init, key, BATCH)
    after, _ = jax.eval_shape(task.train_step, state, BATCH, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    jax.eval_shape(task.evaluate, after, BATCH | {"valid": np.ones(4, bool)})


class OneLayer(nn.Module):
    """A small network of one feature map."""

    @nn.compact
    def __call__(self, images):
        return (nn.relu(nn.Conv(4, (3, 3))(images)),)


def test_a_perceptual_loss_is_part_of_the_reconstruction_loss_and_frozen():
    images = to_model_range(jnp.asarray(BATCH["image"]))
    module = LPIPS(OneLayer())
    variables = module.init(KEY, images, images)
    task, plain = make(perceptual=PerceptualLoss(module, variables, weight=2.0)), make()
    state = task.init(KEY, BATCH)
    after, metrics = step_of(task, state)
    _, without = step_of(plain, state)
    chex.assert_trees_all_equal(state.frozen["perceptual"], variables)
    chex.assert_trees_all_equal(after.frozen, state.frozen)
    assert "p_loss" not in without
    assert metrics["p_loss"] > 0
    np.testing.assert_allclose(metrics["rec_loss"], without["rec_loss"] + 2 * metrics["p_loss"], rtol=1e-5)
    # The adaptive weight balances the whole reconstruction loss.
    assert not np.isclose(metrics["d_weight"], without["d_weight"], rtol=1e-3)


def test_the_perceptual_loss_of_clips_is_that_of_their_frames():
    clips = np.random.default_rng(1).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    images, module = to_model_range(jnp.asarray(clips)), LPIPS(OneLayer())
    perceptual = PerceptualLoss(module, module.init(KEY, images[0], images[0]))
    size = {"channels": 32, "multipliers": (1,), "num_res_blocks": 1, "middle_attention": False, "latent_dim": 4}
    model = build(name="causal_video", patch_size=4, time_scalings=1, quantizer=VectorQuantizer(16), **size)
    task = VQGANTask(
        model, optax.sgd(0.1), squared_error, discriminator=PatchGAN3D(channels=4, num_layers=1), perceptual=perceptual
    )
    state = jax.jit(task.init)(KEY, {"video": clips})
    _, metrics = jax.jit(task.train_step)(state, {"video": clips}, jax.random.key(5))
    made = model.apply(state.trained(NETWORK), images, train=False).reconstruction
    by_frame = [module.apply(perceptual.variables, images[:, frame], made[:, frame]) for frame in range(3)]
    np.testing.assert_allclose(metrics["p_loss"], np.mean(by_frame), rtol=1e-4)


def test_a_frozen_network_of_the_discriminator_changes_nowhere():
    network = OneLayer()
    frozen = FrozenNetwork(network, network.init(KEY, to_model_range(jnp.asarray(BATCH["image"]))))
    task = make(discriminator=FeatureDiscriminator(frozen, group_size=2), lecam_weight=0.1)
    state = jax.jit(task.init)(KEY, BATCH)
    after, metrics = step_of(task, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal(after.frozen, state.frozen)
    chex.assert_trees_all_equal(state.frozen[DISCRIMINATOR]["frozen"]["network"], frozen.variables)
    assert "frozen" not in state.variables[DISCRIMINATOR]
    assert metrics["discriminator_gradient_norm"] > 0
    assert metrics["d_weight"] > 0
    with pytest.raises(UserError, match="r1_weight must be None for FeatureDiscriminator"):
        make(discriminator=task.discriminator, r1_weight=1.0)


def test_without_its_file_lpips_is_left_out_in_one_line(caplog):
    config = base_config()
    config.num_steps, config.model = 1, {"name": "vqgan", **SIZE, "middle_attention": False}
    config.task = {"name": "vqgan", "perceptual": {"name": "lpips"}}
    with caplog.at_level("WARNING"):
        task = build_task(validate(config), ArrayDataset("black", BATCH["image"], image_size=16))
    assert task.perceptual is None
    (line,) = [record.getMessage() for record in caplog.records if "LPIPS" in record.getMessage()]
    assert "config.task.perceptual.file, the reconstruction loss is config.loss alone" in line
    assert "\n" not in line


def test_lpips_is_read_from_a_file(tmp_path):
    """A file of random numbers in the form of the original's AlexNet."""
    like = jax.eval_shape(LPIPS(AlexNet()).init, KEY, *[jnp.zeros((1, 32, 32, 3))] * 2)["params"]
    rng = np.random.default_rng(0)
    arrays = {f"lin{i}.model.1.weight": rng.uniform(size=(1, *like[f"weight_{i}"].shape, 1, 1)) for i in range(5)}
    for number, part in zip((0, 3, 6, 8, 10), range(1, 6), strict=True):
        kernel = like["network"][f"conv_{number}"]["kernel"].shape
        arrays[f"net.slice{part}.{number}.weight"] = rng.normal(size=[kernel[axis] for axis in (3, 2, 0, 1)])
        arrays[f"net.slice{part}.{number}.bias"] = rng.normal(size=kernel[-1:])
    save_file({key: value.astype(np.float32) for key, value in arrays.items()}, tmp_path / "lpips.safetensors")
    model = {"name": "vqgan", **SIZE, "middle_attention": False}
    perceptual = {"name": "lpips", "file": str(tmp_path / "lpips.safetensors"), "weight": 0.5}
    config = base_config()
    config.num_steps, config.model, config.task = 1, model, {"name": "vqgan", "perceptual": perceptual}
    images = np.zeros((2, 32, 32, 3), np.uint8)
    task = build_task(validate(config), ArrayDataset("black", images, image_size=32))
    assert task.perceptual.weight == 0.5
    batch = {"image": images}
    state = jax.eval_shape(task.init, KEY, batch)
    _, metrics = jax.eval_shape(task.train_step, state, batch, KEY)
    assert "p_loss" in metrics
    # The same file has the network that a discriminator may judge by.
    config.task = {"name": "vqgan", "discriminator": {"name": "features", "file": perceptual["file"]}}
    task = build_task(validate(config), ArrayDataset("black", images, image_size=32))
    state = jax.eval_shape(task.init, KEY, batch)
    chex.assert_trees_all_equal_shapes(jax.eval_shape(task.train_step, state, batch, KEY)[0], state)
    config.task = {"name": "vqgan", "perceptual": {"name": "lpips", "file": "nothing.safetensors"}}
    with pytest.raises(UserError, match=r"config.task.perceptual.file must be an existing file, got .*nothing"):
        build_task(validate(config), ArrayDataset("black", images, image_size=32))


def test_the_discriminator_learns_from_the_images_before_the_step(started, stepped):
    task, (after, metrics) = make(), stepped
    images = to_model_range(jnp.asarray(BATCH["image"]))
    fake = task.model.apply(started.trained(NETWORK), images, train=False).reconstruction

    def loss(params):
        real, statistics = judge({"params": params, **started.variables[DISCRIMINATOR]}, images)
        return ADVERSARIAL_LOSSES["hinge"].discriminator(real, judge({"params": params, **statistics}, fake)[0])

    def judge(variables, images):
        return task.discriminator.apply(variables, images, train=True, mutable=["batch_stats"])

    value, gradient = jax.value_and_grad(loss)(started.params[DISCRIMINATOR])
    np.testing.assert_allclose(metrics["disc_loss"], value, rtol=1e-4)
    moved = jax.tree.map(lambda old, new: (old - new) / 0.1, started.params[DISCRIMINATOR], after.params[DISCRIMINATOR])
    chex.assert_trees_all_close(moved, gradient, rtol=1e-2, atol=1e-4)
    assert 0 <= float(metrics["disc_accuracy"]) <= 1


def test_the_numbers_of_the_quantizer_may_be_scheduled(started):
    _, metrics = step_of(make(schedules={"commitment_weight": lambda step: 0.25 * (step > 0)}), started)
    assert metrics["commitment_loss"] > 0
    assert metrics["quant_loss"] == 0


def test_before_its_start_the_discriminator_neither_learns_nor_is_heard(started):
    after, metrics = step_of(make(start=10), started)
    chex.assert_trees_all_equal(after.params[DISCRIMINATOR], started.params[DISCRIMINATOR])
    np.testing.assert_allclose(metrics["loss"], metrics["rec_loss"] + metrics["quant_loss"], rtol=1e-6)
    task = make(start=10, ramp_steps=4)
    factors = [float(task.factor(jnp.array(step))) for step in (0, 9, 10, 11, 13, 14, 100)]
    assert factors == [0, 0, 0.25, 0.5, 1, 1, 1]


def test_the_codebook_moves_once_whatever_the_order(started, stepped):
    after, _ = step_of(make(order="generator_first"), started)
    for network in (NETWORK, DISCRIMINATOR):
        moved = jax.tree.leaves(
            jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), after.params[network], stepped[0].params[network])
        )
        # The generator's step is the same; the discriminator sees other images.
        assert (max(moved) < 1e-6) == (network == NETWORK)
    chex.assert_trees_all_close(after.variables[NETWORK], stepped[0].variables[NETWORK], atol=1e-6)


def test_penalties_of_a_discriminator_that_judges_each_image_by_itself():
    options = {"r1_weight": 5.0, "r1_every": 2, "lecam_weight": 0.1, "adversarial": "non_saturating"}
    task = make(discriminator=StyleGANDiscriminator((4, 4, 4)), max_adaptive_weight=None, **options)
    state = jax.jit(task.init)(KEY, BATCH)
    penalties, train_step = [], jax.jit(task.train_step)
    for _ in range(3):
        state, metrics = train_step(state, BATCH, jax.random.key(5))
        penalties.append(float(metrics["r1"]))
    assert penalties[0] > 0
    assert penalties[1] == 0
    assert penalties[2] > 0
    assert float(metrics["d_weight"]) == pytest.approx(0.8)
    means = state.variables[DISCRIMINATOR]["logit_means"]
    assert means.keys() == {"real", "fake"}
    assert float(means["real"]) != 0


def test_the_r1_penalty_adds_its_gradient():
    """Beside a step without the penalty, and plain differentiation of it."""
    discriminator = StyleGANDiscriminator((4, 4, 4))
    options = {"discriminator": discriminator, "max_adaptive_weight": None}
    state = jax.jit(make(**options).init)(KEY, BATCH)
    moved = [
        jax.tree.map(lambda before, after: (before - after) / 0.1, state.params, step_of(task, state)[0].params)
        for task in (make(**options), make(r1_weight=5.0, r1_every=2, **options))
    ]
    images = to_model_range(jnp.asarray(BATCH["image"]))

    def penalty(params):
        return r1_penalty(lambda images: discriminator.apply({"params": params}, images, train=True), images)

    of_penalty = jax.jit(jax.grad(penalty))(state.params[DISCRIMINATOR])
    expected = jax.tree.map(lambda plain, rise: plain + 2 * 5 * rise, moved[0][DISCRIMINATOR], of_penalty)
    chex.assert_trees_all_close(moved[1][DISCRIMINATOR], expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_equal(moved[1][NETWORK], moved[0][NETWORK])


def test_a_start_from_clusters_averages_no_other_network_than_the_generator():
    # The discriminator came among the averages, so that the state no longer had the structure it began with.
    task = make(kmeans_init=True, ema_decay=0.9)
    state = jax.jit(task.init)(KEY, BATCH)
    started = task.init_from_data(state, iter([BATCH] * 4), KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(started, state)
    chex.assert_trees_all_equal(started.params[DISCRIMINATOR], state.params[DISCRIMINATOR])
    assert not np.allclose(*(s.variables[NETWORK]["codebook"]["quantizer"]["codes"] for s in (started, state)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r1_weight": 1.0}, "r1_weight must be None for PatchGAN"),
        ({"r1_weight": 1.0, "discriminator": PatchGAN3D()}, "r1_weight must be None for PatchGAN3D"),
        ({"model": "sonnet"}, "max_adaptive_weight must be None for SonnetDecoder"),
        ({"optimizer": {"generator": optax.sgd(0.1)}}, "one each for generator and discriminator, got generator"),
    ],
)
def test_what_cannot_train_is_rejected(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("fields", "values", "expected"),
    [
        (("adversarial_weight",), (-1.0, math.nan, math.inf, True, "1", None), "a finite number of at least 0"),
        (
            ("max_adaptive_weight", "r1_weight", "lecam_weight"),
            (0.0, -1.0, math.nan, math.inf, True, "1"),
            "a finite number above 0, or None",
        ),
        (("start", "ramp_steps"), (-1, 0.0, 2**31, math.nan, True, "1", None), r"an integer in \[0, 2147483647\]"),
        (("r1_every",), (0, -1, 16.0, 2**31, True, None), r"an integer in \[1, 2147483647\]"),
        (("ema_decay",), (0.0, 1.0, -1.0, math.nan, True, "0.9"), "above 0 and below 1, or None"),
        (("kmeans_init",), (1, "False", None), "True or False"),
        (("adversarial",), ("hing", None, 3), "one of 'hinge', "),
        (("order",), ("generator", None, 3), "one of 'together', 'generator_first'"),
    ],
)
def test_values_out_of_range_are_rejected(fields, values, expected):
    for field in fields:
        for value in values:
            with pytest.raises(UserError, match=rf"^{field} must be {expected}.*, got {re.escape(repr(value))}\.$"):
                make(**{field: value})


@pytest.fixture
def adversarial(config):
    config.task = {
        "name": "vqgan",
        "ema_decay": 0.9,
        "start": 3,
        "discriminator": {"name": "patchgan", "channels": 4, "num_layers": 1},
    }
    config.model = {"name": "vqgan", **SIZE, "middle_attention": False}
    adam = {"name": "adam", "learning_rate": 1e-3, "b1": 0.5, "b2": 0.9}
    config.optimizer = {NETWORK: adam, DISCRIMINATOR: adam}
    return config


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_that_was_killed_ends_like_one_that_was_not(adversarial, tmp_path, monkeypatch, devices):
    devices = jax.devices()[:devices]
    whole = train(adversarial, tmp_path / "whole", devices=devices)

    def die(self, step, prefix, values):
        if step == 8:
            raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "scalars", die)
        with pytest.raises(MemoryError):
            train(adversarial, tmp_path / "killed", devices=devices)
    resumed = train(adversarial, tmp_path / "killed", devices=devices)
    networks, others = (load_networks(tmp_path / run) for run in ("whole", "killed"))
    chex.assert_trees_all_equal(networks._replace(info=None), others._replace(info=None))
    assert resumed.metrics == whole.metrics
    # Only the generator is averaged.
    assert networks.ema_params.keys() == {NETWORK}
    chex.assert_trees_all_equal(load_tokenizer(tmp_path / "whole").variables["params"], networks.ema_params[NETWORK])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    wanted = {"rec_loss", "quant_loss", "g_loss", "d_weight", "disc_factor", "disc_loss", "logits_real", "logits_fake"}
    assert {f"train/{name}" for name in wanted} <= logged
