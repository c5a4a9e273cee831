"""Optimizers by name: those of optax, with the arguments of a config."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax.errors import UserError
from vqjax.training.build import learning_rates
from vqjax.training.optimizer import OPTIMIZERS, build_optimizer, updates_taken

STEPS = 20
PARAMS = {
    "Conv_0": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.full(2, 0.5)},
    "GroupNorm_0": {"scale": jnp.full(2, 0.5), "bias": jnp.full(2, 0.5)},
    "embedding": jnp.full((4, 2), 0.5),
    "codebook_transform": {"scale": jnp.full((3, 2), 0.5), "shift": jnp.full((3, 2), 0.5)},
}
GRADIENT = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), PARAMS)


def trained(optimizer, gradient=GRADIENT, steps=5):
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_the_default_is_bit_for_bit_the_optimizer_of_the_release_before():
    """State and parameters: a warm-up of no steps, a constant rate, Adam at optax's own defaults."""
    rates = optax.join_schedules([optax.linear_schedule(0.0, 2e-4, 0), optax.constant_schedule(2e-4)], [0])
    chex.assert_trees_all_equal(
        trained(build_optimizer({"name": "adam"}, STEPS)), trained(optax.chain(optax.adam(rates)))
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "adam", "b1": 0.5, "b2": 0.9, "eps": 1e-6}, lambda rate: optax.adam(rate, 0.5, 0.9, 1e-6)),
        ({"name": "adamw", "b2": 0.99, "weight_decay": 0.0}, lambda rate: optax.adam(rate, b2=0.99)),
        ({"name": "sgd"}, lambda rate: optax.sgd(rate)),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, lambda rate: optax.sgd(rate, 0.9, True)),
        ({"name": "lion", "b1": 0.8, "weight_decay": 0.0}, lambda rate: optax.lion(rate, 0.8, weight_decay=0.0)),
        (
            {"name": "adam", "clip_norm": 0.1, "eps": 1.0},
            lambda rate: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(rate, eps=1.0)),
        ),
    ],
)
def test_arguments_reach_optax(config, expected):
    params, _ = trained(build_optimizer({"learning_rate": 0.01, **config}, STEPS))
    chex.assert_trees_all_close(params, trained(expected(0.01))[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_weight_decay_leaves_norms_and_biases_alone(name):
    no_gradient = jax.tree.map(jnp.zeros_like, GRADIENT)
    optimizer = build_optimizer({"name": name, "learning_rate": 0.1, "weight_decay": 0.2}, STEPS)
    params, _ = trained(optimizer, no_gradient, steps=1)
    decayed = jax.tree.map(lambda new, old: float(jnp.max(new / old)), params, PARAMS)
    assert decayed == {
        "Conv_0": {"kernel": pytest.approx(0.98), "bias": 1.0},
        "GroupNorm_0": {"scale": 1.0, "bias": 1.0},
        "embedding": pytest.approx(0.98),
        "codebook_transform": {"scale": 1.0, "shift": 1.0},
    }


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.25, 0.5, 0.5, 0.5]),
        ("linear", [0.0, 0.25, 0.5, 0.25, 0.0]),
        ("cosine", [0.0, 0.25, 0.5, 0.25, 0.0]),
    ],
)
def test_the_learning_rate_warms_up_and_decays(schedule, rates):
    optimizer = OPTIMIZERS.build(name="sgd", learning_rate=0.5, schedule=schedule, warmup_steps=4)
    course = optimizer.learning_rates(num_steps=12)
    np.testing.assert_allclose([float(course(step)) for step in (0, 2, 4, 8, 12)], rates, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"warmup_steps": -1}, "warmup_steps must be a non-negative integer, got -1"),
        ({"warmup_steps": 21}, "warmup_steps must be at most config.num_steps=20, got 21"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, or None, got 0.0"),
        ({"quantizer_learning_rate": 0.0}, "quantizer_learning_rate must be above 0, or None, got 0.0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"leaning_rate": 0.9}, "leaning_rate is unknown; did you mean 'learning_rate'"),
        ({"name": "adamm"}, "did you mean 'adam'"),
        ({"name": "adam", "weight_decay": 0.1}, "weight_decay is unknown"),
    ],
)
def test_what_an_optimizer_cannot_use_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        build_optimizer({"name": "adam", **config}, STEPS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_of_the_log_is_that_of_the_last_update(name):
    """Also with clipping and warm-up, and for each of several networks."""
    config = {"name": name, "learning_rate": 0.01, "schedule": "linear", "warmup_steps": 2, "clip_norm": 1.0}
    optimizer = build_optimizer(config, STEPS)
    state = optimizer.init(PARAMS)
    assert int(updates_taken(state)) == 0
    for _ in range(3):
        _, state = optimizer.update(GRADIENT, state, PARAMS)
    assert int(updates_taken(state)) == 3
    rates = learning_rates({"generator": config, "discriminator": {"name": name}}, STEPS)
    assert [float(rates["generator"](count)) for count in (0, 1, 2)] == pytest.approx([0, 0.005, 0.01])
    assert float(rates["discriminator"](7)) == pytest.approx(OPTIMIZERS.defaults(name)["learning_rate"])


def test_a_course_may_end_before_the_run_and_above_zero():
    """Linear to the rate in 3,000 steps, by a cosine to half of it at 50,000, and flat: the rotation-trick paper's."""
    course = {"schedule": "cosine", "warmup_steps": 3000, "schedule_steps": 47_000, "end_fraction": 0.5}
    rates = OPTIMIZERS.build(name="adamw", learning_rate=1e-4, **course).learning_rates(num_steps=60_000)
    for step in (0, 1500, 3000, 15_625, 50_000, 59_000):
        progress = min(1, max(0, step - 3000) / 47_000)
        expected = step / 3000 if step < 3000 else 0.75 + 0.25 * np.cos(np.pi * progress)
        np.testing.assert_allclose(rates(step), 1e-4 * expected, rtol=1e-5)
    rates = OPTIMIZERS.build(name="sgd", learning_rate=0.5, schedule="linear", end_fraction=0.2).learning_rates(10)
    np.testing.assert_allclose([rates(step) for step in (0, 5, 10, 20)], [0.5, 0.3, 0.1, 0.1], rtol=1e-6)
    for wrong, message in (({"end_fraction": 1.5}, r"in \[0, 1\]"), ({"schedule_steps": 0}, "at least 1, or None")):
        with pytest.raises(UserError, match=f"^{next(iter(wrong))} must be {message}"):
            OPTIMIZERS.build(name="sgd", **wrong)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lion"])
def test_the_quantizer_has_a_learning_rate_of_its_own(name):
    """A large constant rate for the codes, while that of the model has fallen to zero."""
    params = {"encoder": PARAMS, "quantizer": {"codes": jnp.full((4, 2), 0.5)}}
    gradient = jax.tree.map(lambda x: jnp.ones_like(x), params)
    options = {"learning_rate": 1e-3, "schedule": "linear", "schedule_steps": 3}
    optimizer = build_optimizer({"name": name, "quantizer_learning_rate": 0.01, **options}, STEPS)
    alone = build_optimizer({"name": name, **options}, STEPS)
    constant = build_optimizer({"name": name, "learning_rate": 0.01}, STEPS)
    state, others, codes = optimizer.init(params), alone.init(params["encoder"]), constant.init(params["quantizer"])
    for _ in range(5):
        updates, state = optimizer.update(gradient, state, params)
        expected, others = alone.update(gradient["encoder"], others, params["encoder"])
        of_codes, codes = constant.update(gradient["quantizer"], codes, params["quantizer"])
        chex.assert_trees_all_close(updates, {"encoder": expected, "quantizer": of_codes}, rtol=1e-6)
    # The last update is at rate zero.
    assert not any(map(np.any, jax.tree.leaves(updates["encoder"])))
    assert np.all(updates["quantizer"]["codes"] < 0)
    assert int(updates_taken(state)) == 5
