"""Training of a transformer over the tokens of a multi-scale quantizer."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.arrays import gaussian
from vqjax import MultiScaleVQ, VectorQuantizer
from vqjax.errors import UserError
from vqjax.evaluation import evaluate
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.models.next_scale import NextScaleTransformer
from vqjax.models.tokenizer import Tokenizer
from vqjax.tasks.next_scale import NextScaleTask
from vqjax.tasks.second_stage import TOKENIZER, TRANSFORMER

CODES, SCALES, CLASSES, DIM, TOKENS = 5, (1, 2), 2, 4, 5
STEPS = 150


def images(count, seed=0):
    """The first token is that of the class or, as often, the next; those of the second scale count on from it."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    first = labels + random.integers(0, 2, count)
    tokens = (first[:, None] + np.arange(TOKENS)) % CODES
    return {"tokens": tokens.astype(np.int32), "label": labels.astype(np.int32)}


def model_of(**options):
    sizes = {"num_codes": CODES, "scales": SCALES, "code_dim": DIM, "num_classes": CLASSES}
    return NextScaleTransformer(**sizes | {"dim": 32, "depth": 1, "heads": 2} | options)


@functools.cache
def tokenizer_of(quantizer):
    model = VQVAE(SonnetEncoder(width=8, latent_dim=DIM), quantizer, SonnetDecoder(width=8))
    variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    return Tokenizer(model, jax.tree.map(lambda x: gaussian(*x.shape, seed=1), variables), config={}, step=0)


def task_of(model=None, quantizer=None, **options):
    quantizer = quantizer or MultiScaleVQ(VectorQuantizer(CODES), SCALES)
    return NextScaleTask(model or model_of(), optax.adam(1e-2), tokenizer=tokenizer_of(quantizer), **options)


@functools.cache
def trained():
    task = task_of(ema_decay=0.9)
    state = task.init(jax.random.key(0), images(1))
    step = jax.jit(task.train_step)
    for number in range(STEPS):
        state, metrics = step(state, images(32, seed=number), jax.random.key(number))
    return task, state, metrics


@pytest.mark.full
def test_the_likelihood_approaches_the_entropy_of_the_images():
    """One bit for the first token, and none for the others."""
    task, state, _ = trained()
    batch = images(48, seed=10_000) | {"index": np.arange(48), "valid": np.ones(48, bool)}
    metrics = evaluate(jax.tree_util.Partial(task.evaluate, state.replace(opt_state={})), [batch], task.metrics).metrics
    assert 1.0 < metrics["bits_per_image"] < 1.5
    assert metrics["bits_per_token"] == pytest.approx(metrics["bits_per_image"] / TOKENS)


@pytest.mark.full
def test_samples_are_such_images():
    task, state, _ = trained()
    classes = jnp.arange(200) % CLASSES
    tokens = jax.jit(task.sample)(task.networks(state), jax.random.key(1), classes)
    steady = jnp.all((tokens[:, 1:] - tokens[:, :-1]) % CODES == 1, axis=1)
    assert float(jnp.mean(steady & ((tokens[:, 0] - classes) % CODES < 2))) > 0.8
    # Both tokens that a class may start with.
    assert 0.3 < float(jnp.mean(tokens[:, 0] == classes)) < 0.7


@pytest.mark.full
def test_a_step_takes_the_quantizer_from_the_state_and_leaves_it_alone():
    task, state, _ = trained()
    tokenizer = task.tokenizer
    chex.assert_trees_all_equal(state.frozen[TOKENIZER], tokenizer.variables)
    assert set(state.params) == {TRANSFORMER}
    zeros = jax.tree.map(jnp.zeros_like, tokenizer.variables)
    other = dataclasses.replace(task, tokenizer=dataclasses.replace(tokenizer, variables=zeros))
    batch, key = images(32), jax.random.key(0)
    one, two = (jax.jit(each.train_step)(state, batch, key)[1] for each in (task, other))
    np.testing.assert_array_equal(one["loss"], two["loss"])
    assert one["loss"] == pytest.approx(one["bits_per_token"] * np.log(2))


@pytest.mark.full
def test_a_new_transformer_is_uniform():
    task = task_of()
    state = task.init(jax.random.key(0), images(1))
    outputs = jax.jit(task.evaluate)(state, images(3))
    np.testing.assert_allclose(outputs["bits_per_image"], np.full(3, TOKENS * np.log2(CODES)), rtol=1e-5)
    assert task.facts == {"num_codes": CODES, "tokens_per_image": TOKENS, "num_classes": CLASSES}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: task_of(model_of(num_codes=6)),
            "`num_codes` of the transformer must be 5, as its quantizer has, got 6",
        ),
        (lambda: task_of(model_of(scales=(1, 3))), r"`shapes` of the transformer must be \(\(1, 1\), \(2, 2\)\)"),
        (
            lambda: task_of(quantizer=VectorQuantizer(CODES)),
            "tokenizer must be one with MultiScaleVQ .* VectorQuantizer",
        ),
        (lambda: NextScaleTask(model_of(), optax.adam(1e-2)), "tokenizer must be one with MultiScaleVQ .*, got none"),
        (lambda: task_of(class_dropout=1.0), r"class_dropout must be a number in \[0, 1\)"),
        (
            lambda: task_of().init(
                jax.random.key(0), {"tokens": images(3)["tokens"][:, :1], "label": np.zeros(3, int)}
            ),
            r"`tokens` must be \[batch, 5\], those of the scales \(1, 2\), got \[3, 1\]; pass what `encode`",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
