"""Schedules of the quantizer's numbers: the value of a step is used in that step, also after a resume."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import FSQ, Residual, UserError, VectorQuantizer
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training.config import complete, override, validate
from vqjax.training.loop import train
from vqjax.training.schedules import Schedule, build_schedules

pytestmark = pytest.mark.full

WEIGHT = {"start": 0.0, "end": 1.0, "steps": 10}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [4, 4, 2.5, 1, 1]), ("cosine", [4, 4, 2.5, 1, 1]), ("exponential", [4, 4, 2, 1, 1])],
)
def test_a_schedule_goes_from_start_to_end(shape, expected):
    schedule = Schedule(start=4.0, end=1.0, steps=10, begin=5, shape=shape).build()
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 15, 99)], expected, rtol=1e-6)


def test_the_value_of_a_step_is_used_in_that_step():
    encoder, decoder = SonnetEncoder(width=8, num_residual_blocks=1, latent_dim=4), SonnetDecoder(width=8)

    def task(schedules, **settings):
        model = VQVAE(encoder, VectorQuantizer(num_codes=8, **settings), decoder)
        return VQVAETask(model, optax.sgd(0.1), lambda x, y: jnp.mean((x - y) ** 2), schedules=schedules)

    batch = {"image": jax.random.randint(jax.random.key(0), (2, 16, 16, 3), 0, 256).astype(jnp.uint8)}
    annealed = task(build_schedules({"commitment_weight": WEIGHT}, VectorQuantizer(num_codes=8)))
    state = annealed.init(jax.random.key(1), batch)
    take_step, key = jax.jit(annealed.train_step), jax.random.key(2)
    for step in (0, 4, 12):
        written_down = jax.jit(task({}, commitment_weight=min(step / 10, 1.0)).train_step)
        at_step = state.replace(step=jnp.array(step, jnp.int32))
        after, metrics = take_step(at_step, batch, key)
        np.testing.assert_allclose(metrics.pop("schedules.commitment_weight"), min(step / 10, 1.0), rtol=1e-6)
        chex.assert_trees_all_close((after, metrics), written_down(at_step, batch, key), rtol=1e-5, atol=1e-7)


def test_a_resumed_run_goes_on_with_the_schedule(config, tmp_path):
    config.schedules = {"commitment_weight": WEIGHT, "codebook": {"decay": {"start": 0.5, "end": 0.9, "steps": 6}}}
    config.log_every = 1
    ends = []
    for name, lengths in (("whole", (5,)), ("cut", (3, 5))):
        for config.num_steps in lengths:
            train(config, tmp_path / name, devices=jax.devices()[:1])
        ends.append(load_tokenizer(tmp_path / name).variables)
    chex.assert_trees_all_equal(*ends)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    logged = [line["train/schedules.commitment_weight"] for line in lines if "train/loss" in line]
    np.testing.assert_allclose(logged, [0.0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    config.schedules = {"commitment_weight": WEIGHT}
    with pytest.raises(UserError, match=r"config\.schedules\.codebook\.decay\..* must be .*, as in the run"):
        train(config, tmp_path / "whole", devices=jax.devices()[:1])


def test_schedules_are_fields_of_the_config(config):
    config.schedules = {"commitment_weight": WEIGHT}
    changed = override(complete(config), "schedules.commitment_weight.end=0.5")
    assert changed.schedules.commitment_weight.to_dict() == {
        "start": 0.0,
        "end": 0.5,
        "steps": 10,
        "begin": 0,
        "shape": "linear",
    }
    assert not override(changed, "schedules.commitment_weight=None").schedules
    with pytest.raises(UserError, match=r"config\.schedules\.commitment_weight\.stop is unknown; did you mean 'steps'"):
        override(changed, "schedules.commitment_weight.stop=1")
    for assignment in ("start=0.5", "end=0.9", "steps=4"):
        changed = override(changed, f"schedules.codebook.decay.{assignment}")
    schedules = build_schedules(validate(changed).schedules, VectorQuantizer(8))
    assert {name: round(float(schedule(2)), 3) for name, schedule in schedules.items()} == {
        "commitment_weight": 0.1,
        "codebook.decay": 0.7,
    }


def test_a_number_is_no_schedule(config):
    config.schedules = {"codebook": {"decay": 3}}
    with pytest.raises(UserError, match=r"^config\.schedules\.codebook\.decay must be a dictionary .*, got 3"):
        complete(config)


@pytest.mark.parametrize(
    ("quantizer", "schedules", "message"),
    [
        (VectorQuantizer(8), {"comitment_weight": WEIGHT}, "comitment_weight is not a field .* 'commitment_weight'"),
        (VectorQuantizer(8), {"codebook": {"decay": WEIGHT}}, r"decay must be a number in \[0, 1\), got 1.0"),
        (VectorQuantizer(8), {"commitment_weight": WEIGHT | {"steps": 0}}, "steps must be at least 1, got 0"),
        (VectorQuantizer(8), {"commitment_weight": {"start": 0.0, "steps": 1}}, "commitment_weight.end is missing"),
        (
            VectorQuantizer(8),
            {"commitment_weight": WEIGHT | {"shape": "exponential"}},
            "start and end must be above 0 with shape='exponential', got 0.0 and 1.0",
        ),
        (
            Residual(FSQ((4, 4), hard_clamp=False), 2),
            {"soft_clamp": WEIGHT},
            "soft_clamp must be the same at every step, as tokens depend on it",
        ),
    ],
)
def test_schedules_that_cannot_run_are_refused(quantizer, schedules, message):
    with pytest.raises(UserError, match=message):
        build_schedules(schedules, quantizer)
