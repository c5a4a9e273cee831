"""Next-scale prediction: what a scale sees, its cache, the likelihood, and the sampler."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import MultiScaleVQ, VectorQuantizer
from vqjax.errors import UserError
from vqjax.models.next_scale import (
    NextScaleTransformer,
    guided_step,
    sample_scales,
    scale_guidance,
    scale_inputs,
)
from vqjax.models.sampling import guided, restricted

CODES, SCALES, CLASSES, DIM = 7, (1, 2, (3, 2)), 3, 4
ENDS = (0, 1, 5, 11)
SCALE_OF = np.repeat(np.arange(3), np.diff(ENDS))
SIZE = {"num_codes": CODES, "scales": SCALES, "code_dim": DIM, "num_classes": CLASSES, "dim": 16, "heads": 2}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CODES, (1, 11)), jnp.int32)
INPUTS = jnp.zeros((2, 10, DIM))


@functools.cache
def quantizer_and_variables(num_codes=CODES, scales=SCALES):
    vq = MultiScaleVQ(VectorQuantizer(num_codes), scales, num_phi=2)
    variables = jax.jit(vq.init)(jax.random.key(3), gaussian(2, 3, 2, DIM))
    return vq, jax.tree.map(lambda x: x + gaussian(*x.shape, seed=1), variables)


@functools.cache
def model_and_variables(**options):
    """A model whose parameters are all random, so that none of its parts is zero."""
    model = NextScaleTransformer(**SIZE | options)
    inputs = jnp.zeros((1, model.positions - model.sizes[0], DIM))
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    leaves, tree = jax.tree.flatten(shapes)
    leaves = [0.3 * gaussian(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    return model, jax.tree.unflatten(tree, leaves)


@functools.cache
def whole_pass():
    (model, variables), quantizer = model_and_variables(depth=2), quantizer_and_variables()

    def logits_of(tokens, classes):
        return model.apply(variables, scale_inputs(*quantizer, tokens), classes, train=False)

    return jax.jit(logits_of)


@pytest.mark.full
def test_a_token_depends_on_its_class_and_on_all_tokens_of_coarser_scales_alone():
    changed = jnp.where(jnp.eye(11, dtype=bool), (TOKENS + 1) % CODES, TOKENS)
    tokens, classes = jnp.concatenate([TOKENS, TOKENS, changed]), jnp.zeros(13, int).at[1].set(1)
    logits = whole_pass()(tokens, classes)
    moved = np.any(np.abs(logits - logits[:1]) > 1e-5, axis=2)
    assert np.all(moved[1])
    np.testing.assert_array_equal(moved[2:], SCALE_OF[:, None] < SCALE_OF[None])


@pytest.mark.full
def test_no_class_is_the_last_class():
    tokens = jnp.tile(TOKENS, (13, 1))
    without = whole_pass()(tokens, None)
    np.testing.assert_allclose(without, whole_pass()(tokens, jnp.full(13, CLASSES)), rtol=1e-5, atol=1e-6)


def test_sampling_meets_the_logits_that_training_has_for_its_tokens():
    options = {"temperature": 0.7, "top_k": 4, "top_p": 0.8}
    model, variables = model_and_variables(depth=2)
    classes, key, met = jnp.arange(13) % CLASSES, jax.random.key(5), []
    step = guided_step(model, variables, *quantizer_and_variables(), classes, 2.5)

    def recorded(scale, tokens, cache):
        logits, cache = step(scale, tokens, cache)
        met.append(logits)
        return logits, cache

    @jax.jit
    def sample(key):
        met.clear()
        return sample_scales(recorded, key, batch=13, num_scales=3, **options), tuple(met)

    tokens, logits = sample(key)
    assert len(np.unique(tokens)) > 2
    conditional, unconditional = (whole_pass()(tokens, each) for each in (classes, jnp.full(13, CLASSES)))
    for scale, (start, end) in enumerate(itertools.pairwise(ENDS)):
        expected = guided(conditional[:, start:end], unconditional[:, start:end], scale_guidance(2.5, scale, 3))
        np.testing.assert_allclose(logits[scale], expected, rtol=1e-4, atol=1e-4)
        drawn = jax.random.categorical(jax.random.fold_in(key, scale), restricted(logits[scale], **options))
        np.testing.assert_array_equal(tokens[:, start:end], drawn)


def test_inputs_in_sampling_are_those_in_training():
    """The inputs of a scale have the same bits whether or not its own tokens are known."""
    tokens = jax.random.randint(jax.random.key(0), (5, 11), 0, CODES)
    vq, variables = quantizer_and_variables()
    inputs_of = jax.jit(lambda tokens: scale_inputs(vq, variables, tokens))
    whole = inputs_of(tokens)
    for seen, known in ((1, 4), (5, 10)):
        np.testing.assert_array_equal(inputs_of(tokens[:, :seen]), whole[:, :known])


def test_without_guidance_no_logits_without_a_class_are_computed():
    model, variables = model_and_variables(depth=1)
    vq = quantizer_and_variables()
    tokens, classes = jnp.zeros((5, 0), jnp.int32), jnp.zeros(5, int)
    for guidance, rows in ((1.0, 5), (2.0, 10)):
        step = guided_step(model, variables, *vq, classes, guidance)
        logits, cache = jax.eval_shape(functools.partial(step, 0), tokens, ())
        assert logits.shape == (5, 1, CODES)
        assert cache[0][0].shape == (rows, 1, 2, 8)


def test_the_probabilities_of_all_images_of_a_class_add_up_to_one():
    vq, vq_variables = quantizer_and_variables(2, (1, 2))
    model, variables = model_and_variables(num_codes=2, scales=(1, 2), depth=1)
    images = jnp.array(list(itertools.product((0, 1), repeat=5)), jnp.int32)

    @jax.jit
    def log_p(images):
        inputs = scale_inputs(vq, vq_variables, images)
        logits = model.apply(variables, inputs, jnp.ones(len(images), int), train=False)
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), images[..., None], -1)[..., 0], axis=1)

    probabilities = np.exp(log_p(images))
    assert np.sum(probabilities) == pytest.approx(1, rel=1e-5)
    assert np.std(probabilities) > 0.01


def test_samples_follow_the_distribution_of_the_steps():
    """A first token, then two apart from one another by a table row of the first; all at half of their logits."""
    first, table = np.array([0.7, 0.2, 0.1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    count = 20_000

    def step(scale, tokens, cache):
        p = first if scale == 0 else jnp.asarray(table)[tokens[:, 0]]
        return jnp.log(jnp.broadcast_to(p.reshape(-1, 1, 3), (count, scale + 1, 3))), cache

    tokens = sample_scales(step, jax.random.key(0), batch=count, num_scales=2, temperature=2.0)
    first, table = (np.sqrt(p) / np.sum(np.sqrt(p), axis=-1, keepdims=True) for p in (first, table))
    expected = count * first[:, None, None] * table[:, :, None] * table[:, None, :]
    found = np.bincount(np.ravel_multi_index(np.asarray(tokens).T, (3, 3, 3)), minlength=27).reshape(3, 3, 3)
    # Chi-square with 26 degrees of freedom exceeds 54 in one of a thousand cases.
    assert np.sum((found - expected) ** 2 / expected) < 54


@pytest.mark.full
def test_half_precision_and_recomputation_change_nothing_but_rounding():
    model, variables = model_and_variables(depth=1)
    inputs, classes = gaussian(3, 10, DIM), jnp.arange(3)

    def gradient(**options):
        changed = model.clone(**options)

        def loss(params):
            return jnp.mean(jnp.square(changed.apply({"params": params}, inputs, classes, train=False)))

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, again, half = gradient(), gradient(remat=True), gradient(dtype="bfloat16")
    for x, y, z in zip(*map(jax.tree.leaves, (plain, again, half)), strict=True):
        scale = float(jnp.max(jnp.abs(x)))
        assert scale > 0
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * scale)
        assert z.dtype == jnp.float32
        assert float(jnp.sqrt(jnp.mean(jnp.square(x - z)))) < 0.1 * scale


def test_a_new_model_is_uniform_and_its_blocks_are_the_identity():
    model = NextScaleTransformer(**SIZE, depth=1, dropout=0.5)
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), INPUTS)
    assert np.all(logits == 0)
    assert not np.any(variables["params"]["blocks_0"]["gates"]["kernel"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NextScaleTransformer(**SIZE | {"scales": (2,)}), r"scales must be two or more sides.*; pass those"),
        (lambda: NextScaleTransformer(**SIZE | {"scales": (1, (2, 3, 4))}), "scales must be two or more sides"),
        (lambda: NextScaleTransformer(**SIZE | {"dim": 15}), "dim must be a multiple of heads=2, got 15"),
        (lambda: NextScaleTransformer(**SIZE | {"code_dim": 0}), "code_dim must be an integer"),
        (lambda: NextScaleTransformer(**SIZE, dropout=1.0), r"dropout must be a number in \[0, 1\), got 1.0"),
        (
            lambda: apply(INPUTS[:, :4], train=False),
            r"`inputs` must be floats of shape \[batch, 10, 4\], got float32 of shape \[2, 4, 4\]; make them of",
        ),
        (lambda: apply(INPUTS[..., :3], train=False), r"`inputs` must be .*got float32 of shape \[2, 10, 3\]"),
        (
            lambda: apply(INPUTS, jnp.arange(3), train=False),
            r"`classes` must be one for each of 2 images, got shape \[3\]; pass 3 for",
        ),
        (lambda: apply(INPUTS), "`train` must be True or False for NextScaleTransformer, got None; say which"),
        (
            lambda: apply(1, None, jnp.arange(2), (), method="step"),
            r"`inputs` must be floats of shape \[batch, 4, 4\], got None; make them of the tokens",
        ),
        (lambda: scale_inputs(*quantizer_and_variables(), TOKENS[:, :3]), "indices must end with a scale"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def apply(*inputs, **options):
    model, variables = model_and_variables(depth=1)
    return model.apply(variables, *inputs, **options)
