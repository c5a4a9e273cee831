"""Training of transformers over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.models.sampling import sample_causal, sample_masked
from vqjax.models.transformer import CausalTransformer, MaskedTransformer
from vqjax.tasks.autoregressive import AutoregressiveTask
from vqjax.tasks.masked_tokens import MaskedTokensTask, random_masks
from vqjax.tasks.second_stage import TRANSFORMER

CODES, CLASSES = 5, 2
SIZE = {"num_codes": CODES, "grid": (2, 3), "num_classes": CLASSES, "dim": 32, "depth": 2, "heads": 2}
STEPS = 150


def images(count, seed=0):
    """The first token is that of the class or, as often, the next; each further one is its predecessor plus one."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    first = labels + random.integers(0, 2, count)
    tokens = (first[:, None] + np.arange(6)) % CODES
    return {"tokens": tokens.reshape(count, 2, 3).astype(np.int32), "label": labels.astype(np.int32)}


def task_of(kind, **options):
    model = {AutoregressiveTask: CausalTransformer, MaskedTokensTask: MaskedTransformer}[kind]
    return kind(model(**SIZE), optax.adam(3e-3), **options)


@functools.cache
def trained(kind):
    task = task_of(kind, ema_decay=0.9)
    state = task.init(jax.random.key(0), images(1))
    step = jax.jit(task.train_step)
    for number in range(STEPS):
        state, metrics = step(state, images(32, seed=number), jax.random.key(number))
    return task, state, metrics


def evaluated(kind, batch_size, count=48):
    task, state, _ = trained(kind)
    whole = images(count, seed=10_000) | {"index": np.arange(count), "valid": np.ones(count, bool)}
    batches = [{name: rows[i : i + batch_size] for name, rows in whole.items()} for i in range(0, count, batch_size)]
    return evaluate(jax.tree_util.Partial(task.evaluate, state.replace(opt_state={})), batches, task.metrics).metrics


@pytest.mark.full
def test_the_likelihood_approaches_the_entropy_of_the_images():
    """One bit for the first token, and none for the others."""
    metrics = evaluated(AutoregressiveTask, 16)
    assert 1.0 < metrics["bits_per_image"] < 1.5
    assert metrics["bits_per_token"] == pytest.approx(metrics["bits_per_image"] / 6)


@pytest.mark.full
def test_masked_tokens_are_known_from_one_that_is_not():
    metrics = evaluated(MaskedTokensTask, 16)
    # With all masked, each token alone has a bit.
    assert 1.0 < metrics["bits_per_token_all"] < 1.6
    assert metrics["bits_per_token_tenth"] < 0.4


@pytest.mark.full
@pytest.mark.parametrize("kind", [AutoregressiveTask, MaskedTokensTask])
def test_evaluations_do_not_depend_on_the_batches(kind):
    whole, parts = evaluated(kind, 48), evaluated(kind, 12)
    for name in whole:
        if name != "batch_size":
            assert whole[name] == pytest.approx(parts[name], rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("kind", [AutoregressiveTask, MaskedTokensTask])
def test_the_information_of_a_position_is_that_of_all_its_levels(kind):
    """A new model is uniform over 4 and 8 codes, or nearly so: 5 bits a position."""
    model = {AutoregressiveTask: CausalTransformer, MaskedTokensTask: MaskedTransformer}[kind]
    task = kind(model(**SIZE | {"num_codes": (4, 8), "dim": 16, "depth": 1}), optax.adam(1e-2))
    batch = images(2) | {"index": np.arange(2)}
    batch["tokens"] = np.stack([batch["tokens"] % 4, batch["tokens"]], axis=-1)
    state = task.init(jax.random.key(0), batch)
    step = jax.jit(task.train_step)
    outputs = task.evaluate(state, batch)
    of_token = outputs["bits_per_token" if kind is AutoregressiveTask else "bits_per_token_all"]
    np.testing.assert_allclose(of_token, [5.0, 5.0], rtol=0.01)
    for number in range(30):
        state, metrics = step(state, batch, jax.random.key(number))
    assert metrics["loss"] < 0.8 * 5 * np.log(2)
    assert metrics["bits_per_token"] < 4
    assert 0.4 < metrics["accuracy"] <= 1


@pytest.mark.full
def test_guidance_that_rises_begins_with_none():
    """The likeliest code with the class is another one than with five times its difference to that without."""
    model = CausalTransformer(**SIZE | {"num_codes": 16, "num_classes": 40, "depth": 1})
    task, classes = AutoregressiveTask(model, optax.identity()), jnp.arange(40)
    shapes = jax.eval_shape(task.init, jax.random.key(0), images(1))
    random = np.random.default_rng(0)
    networks = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes.params)
    draw = functools.partial(task.sample, {TRANSFORMER: {"params": networks[TRANSFORMER]}}, jax.random.key(1), classes)
    plain, constant, linear = (
        np.asarray(draw(top_k=1, guidance=guidance, guidance_schedule=schedule))
        for guidance, schedule in ((1.0, "constant"), (6.0, "constant"), (6.0, "linear"))
    )
    np.testing.assert_array_equal(linear[:, 0], plain[:, 0])
    assert np.mean(constant[:, 0] != plain[:, 0]) > 0.2
    assert np.mean(linear[:, 5] != plain[:, 5]) > 0.2


def share_of_such_images(tokens, classes):
    steady = jnp.all((tokens[:, 1:] - tokens[:, :-1]) % CODES == 1, axis=1)
    return float(jnp.mean(steady & ((tokens[:, 0] - classes) % CODES < 2)))


CHOSEN = jnp.arange(200) % CLASSES


def test_samples_of_the_causal_model_are_such_images():
    task, state, _ = trained(AutoregressiveTask)

    def step(previous, position, cache):
        return task.model.apply(state.evaluated(TRANSFORMER), previous, CHOSEN, position, cache, method="step")

    tokens = sample_causal(step, task.model.start_cache(200), jax.random.key(1), batch=200, positions=6)
    assert share_of_such_images(tokens, CHOSEN) > 0.8


@pytest.mark.full
def test_samples_of_the_masked_model_are_such_images():
    task, state, _ = trained(MaskedTokensTask)

    def logits_of(tokens, masked, progress):
        return task.model.apply(state.evaluated(TRANSFORMER), tokens, masked, CHOSEN, train=False)

    start, options = jnp.zeros((200, 6), jnp.int32), {"schedule": "linear", "choice_temperature": 1.0}
    tokens = sample_masked(logits_of, jax.random.key(1), start, start == 0, num_steps=6, **options)
    at_once = sample_masked(logits_of, jax.random.key(1), start, start == 0, num_steps=1)
    assert share_of_such_images(tokens, CHOSEN) > 0.5
    # Apart from one another, six tokens agree by chance: 2 to the power of -5.
    assert share_of_such_images(at_once, CHOSEN) < 0.1


@pytest.mark.full
@pytest.mark.parametrize("kind", [AutoregressiveTask, MaskedTokensTask])
def test_a_step_is_the_same_on_eight_devices(kind):
    task = task_of(kind)
    state, batch, key = task.init(jax.random.key(0), images(1)), images(16), jax.random.key(1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
    step = jax.jit(task.train_step)
    _, one = step(state, batch, key)
    _, many = step(jax.device_put(state, whole), jax.device_put(batch, rows), key)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, err_msg=name)


@pytest.mark.full
def test_classes_that_are_not_seen_are_learned_as_no_class():
    task = task_of(AutoregressiveTask, class_dropout=0.99)
    state = task.init(jax.random.key(0), images(1))
    after, _ = jax.jit(task.train_step)(state, images(256), jax.random.key(0))
    moved = jnp.any(after.params[TRANSFORMER]["head"]["kernel"] != state.params[TRANSFORMER]["head"]["kernel"])
    assert moved
    # The last layer starts at zero, so that tables move from the second step on.
    again, _ = jax.jit(task.train_step)(after, images(256), jax.random.key(1))
    change = jnp.linalg.norm(
        again.params[TRANSFORMER]["class_table"]["embedding"] - after.params[TRANSFORMER]["class_table"]["embedding"],
        axis=1,
    )
    assert float(change[CLASSES]) > 0


def test_masks_cover_the_share_of_each_image():
    shares = jnp.linspace(0, 1, 50)
    masked = random_masks(jax.random.key(0), shares, 20)
    np.testing.assert_array_equal(jnp.sum(masked, axis=1), np.clip(np.ceil(np.asarray(shares) * 20), 1, 20))
    assert float(jnp.std(jnp.mean(random_masks(jax.random.key(1), jnp.full(4000, 0.5), 20), axis=0))) < 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task_of(AutoregressiveTask, class_dropout=1.0), r"class_dropout must be a number in \[0, 1\)"),
        (lambda: task_of(AutoregressiveTask, ema_decay=0.0), "ema_decay must be above 0 and below 1"),
        (lambda: task_of(MaskedTokensTask, schedule="sine"), "schedule must be one of 'cosine'"),
        (lambda: task_of(MaskedTokensTask, label_smoothing=1.0), "label_smoothing must be a number"),
        (
            lambda: task_of(AutoregressiveTask).init(jax.random.key(0), {"tokens": images(1)["tokens"]}),
            "batches must have `label` for num_classes=2",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
