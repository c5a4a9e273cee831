"""Transformers over tokens: what they see, their cache, and their likelihood."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.models.sampling import restricted, sample_causal
from vqjax.models.transformer import CausalTransformer, MaskedTransformer
from vqjax.tasks.second_stage import bits

CODES, GRID, CLASSES = 11, (2, 4), 3
SIZE = {"num_codes": CODES, "grid": GRID, "num_classes": CLASSES, "dim": 16, "depth": 2, "heads": 2}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CODES, (3, 8)), jnp.int32)
LABELS = jnp.array([0, 2, 1])
# Levels of different sizes.
SIZES = (5, 3, 4)
CODES_OF_LEVELS = jnp.asarray(np.random.default_rng(1).integers(0, SIZES, (3, 6, 3)), jnp.int32)
OF_LEVELS = {"num_codes": SIZES, "grid": (2, 3), "depth": 1}


@functools.cache
def model_and_variables(kind=CausalTransformer, **options):
    """A model whose parameters are all random, so that none of its parts is zero."""
    model = kind(**SIZE | options)
    tokens = TOKENS if model.levels is None else CODES_OF_LEVELS
    masked = jnp.zeros(tokens.shape[:2], bool)
    inputs = (tokens, LABELS) if kind is CausalTransformer else (tokens, masked, LABELS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(tree, leaves)


@functools.cache
def whole_pass(**options):
    model, variables = model_and_variables(**options)
    return jax.jit(lambda tokens, classes: model.apply(variables, tokens, classes, train=False))


def test_a_token_depends_on_its_class_and_on_the_tokens_before_it_alone():
    logits = whole_pass()(TOKENS, LABELS)
    for place in range(8):
        changed = TOKENS.at[:, place].set((TOKENS[:, place] + 1) % CODES)
        moved = jnp.any(jnp.abs(whole_pass()(changed, LABELS) - logits) > 1e-5, axis=(0, 2))
        assert moved.tolist() == [False] * (place + 1) + [True] * (7 - place)
    assert jnp.all(jnp.any(whole_pass()(TOKENS, (LABELS + 1) % CLASSES) != logits, axis=2))


@pytest.mark.full
def test_no_class_is_the_last_class():
    model, variables = model_and_variables()
    without = model.apply(variables, TOKENS, train=False)
    np.testing.assert_array_equal(without, model.apply(variables, TOKENS, jnp.full(3, CLASSES), train=False))


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}])
def test_sampling_with_the_cache_draws_what_it_draws_without(options):
    model, variables = model_and_variables()
    key = jax.random.key(7)

    @jax.jit
    def cached(variables):
        def step(previous, position, cache):
            return model.apply(variables, previous, LABELS, position, cache, method="step")

        return sample_causal(step, model.start_cache(3), key, batch=3, positions=8, **options)

    tokens = jnp.zeros((3, 8), jnp.int32)
    for place in range(8):
        logits = restricted(whole_pass()(tokens, LABELS)[:, place], **options)
        tokens = tokens.at[:, place].set(jax.random.categorical(jax.random.fold_in(key, place), logits))
    np.testing.assert_array_equal(cached(variables), tokens)
    assert len(np.unique(tokens)) > 2


def test_the_likelihood_is_the_sum_of_those_of_the_steps():
    model, variables = model_and_variables()
    step = jax.jit(lambda *inputs: model.apply(variables, *inputs, method="step"))
    of_whole = jnp.take_along_axis(jax.nn.log_softmax(whole_pass()(TOKENS, LABELS)), TOKENS[..., None], -1)[..., 0]
    cache, previous, of_steps = model.start_cache(3), jnp.zeros(3, jnp.int32), []
    for place in range(8):
        logits, cache = step(previous, LABELS, place, cache)
        previous = TOKENS[:, place]
        of_steps.append(jnp.take_along_axis(jax.nn.log_softmax(logits), previous[:, None], -1)[:, 0])
    np.testing.assert_allclose(of_whole, jnp.stack(of_steps, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(of_whole, axis=1), sum(of_steps), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, OF_LEVELS], ids=["one code", "levels"])
def test_a_tied_model_is_one_whose_last_layer_is_the_table(options):
    model, variables = model_and_variables(tied=True, **options)
    tokens = TOKENS if model.levels is None else CODES_OF_LEVELS
    table = variables["params"]["token_table"]["embedding"]
    untied = model.clone(tied=False)
    sizes = (CODES,) if model.levels is None else SIZES
    kernels = jnp.split(table.T, np.cumsum(sizes)[:-1], axis=1)
    names = ["head"] if model.levels is None else [f"head_{level}" for level in range(3)]
    heads = {name: {"kernel": kernel} for name, kernel in zip(names, kernels, strict=True)}
    expected = untied.apply({"params": variables["params"] | heads}, tokens, LABELS, train=False)
    chex.assert_trees_all_close(model.apply(variables, tokens, LABELS, train=False), expected, rtol=1e-5, atol=1e-5)
    # A step is a part of the whole pass here too.
    first, _ = model.apply(variables, jnp.zeros(3, jnp.int32), LABELS, 0, model.start_cache(3), method="step")
    whole = expected if model.levels is None else expected[0]
    np.testing.assert_allclose(first, whole[:, 0], rtol=1e-4, atol=1e-5)


def changed_code(place, level):
    """The tokens of several levels with another code at one place and level."""
    return CODES_OF_LEVELS.at[:, place, level].set((CODES_OF_LEVELS[:, place, level] + 1) % SIZES[level])


def moved(logits, others):
    """True where logits differ, by position and level."""
    return np.stack([jnp.any(jnp.abs(x - y) > 1e-5, axis=(0, 2)) for x, y in zip(logits, others, strict=True)], axis=1)


def test_a_code_depends_on_the_levels_before_it_and_on_all_levels_of_the_positions_before():
    apply = whole_pass(**OF_LEVELS)
    logits = apply(CODES_OF_LEVELS, LABELS)
    assert [of_level.shape for of_level in logits] == [(3, 6, size) for size in SIZES]
    order = np.arange(18).reshape(6, 3)
    for place, level in np.ndindex(6, 3):
        others = apply(changed_code(place, level), LABELS)
        np.testing.assert_array_equal(moved(logits, others), order > order[place, level])


@pytest.mark.full
def test_codes_of_levels_are_drawn_with_the_cache_as_without():
    model, variables = model_and_variables(**OF_LEVELS)
    key, apply = jax.random.key(7), whole_pass(**OF_LEVELS)

    @jax.jit
    def cached(variables):
        def step(previous, position, cache, level):
            return model.apply(variables, previous, LABELS, position, cache, level, method="step")

        return sample_causal(step, model.start_cache(3), key, batch=3, positions=6, levels=3, top_k=3)

    tokens = jnp.zeros((3, 6, 3), jnp.int32)
    for number, (place, level) in enumerate(np.ndindex(6, 3)):
        logits = restricted(apply(tokens, LABELS)[level][:, place], top_k=3)
        code = jax.random.categorical(jax.random.fold_in(key, number), logits)
        tokens = tokens.at[:, place, level].set(code)
    np.testing.assert_array_equal(cached(variables), tokens)
    assert len(np.unique(tokens)) > 2


def test_the_likelihood_of_levels_is_the_sum_of_those_of_the_steps():
    model, variables = model_and_variables(**OF_LEVELS)

    @jax.jit
    def of_steps(variables):
        def at_position(carried, position):
            (previous, cache), information = carried, []
            for level in range(3):
                logits, cache = model.apply(variables, previous, LABELS, position, cache, level, method="step")
                previous = CODES_OF_LEVELS[:, position, level]
                information.append(bits(logits[:, None], previous[:, None])[:, 0])
            return (previous, cache), sum(information)

        start = (jnp.zeros(3, jnp.int32), model.start_cache(3))
        return jax.lax.scan(at_position, start, jnp.arange(6))[1].T

    of_whole = bits(whole_pass(**OF_LEVELS)(CODES_OF_LEVELS, LABELS), CODES_OF_LEVELS)
    np.testing.assert_allclose(of_whole, of_steps(variables), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_masked_positions_are_hidden_with_all_their_levels():
    model, variables = model_and_variables(MaskedTransformer, **OF_LEVELS)
    apply = jax.jit(lambda tokens, masked: model.apply(variables, tokens, masked, LABELS, train=False))
    masked = jnp.arange(6)[None] % 2 == jnp.ones((3, 1), int)
    logits = apply(CODES_OF_LEVELS, masked)
    assert [of_level.shape for of_level in logits] == [(3, 6, size) for size in SIZES]
    for place, level in np.ndindex(6, 3):
        assert moved(logits, apply(changed_code(place, level), masked)).any() == (place % 2 == 0)


@pytest.mark.full
def test_one_level_beside_none_is_the_same_masked_model():
    """Several codes are no other model: with one level the parameters and logits are those without levels."""
    model, variables = model_and_variables(MaskedTransformer)
    (logits,) = model.clone(num_codes=(CODES,)).apply(variables, TOKENS[..., None], TOKENS > 5, LABELS, train=False)
    expected = model.apply(variables, TOKENS, TOKENS > 5, LABELS, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_new_causal_model_is_uniform():
    model = CausalTransformer(**SIZE)
    logits, variables = model.init_with_output(jax.random.key(0), TOKENS, LABELS)
    assert jnp.all(logits == 0)
    assert set(variables["params"]) == {"token_table", "class_table", "blocks_0", "blocks_1", "norm", "head"}


def test_masked_tokens_are_not_seen_and_the_others_are():
    model, variables = model_and_variables(MaskedTransformer)
    apply = jax.jit(lambda tokens, masked: model.apply(variables, tokens, masked, LABELS, train=False))
    masked = jnp.arange(8)[None] % 2 == jnp.ones((3, 1), int)
    logits = apply(TOKENS, masked)
    for place in range(8):
        changed = TOKENS.at[:, place].set((TOKENS[:, place] + 1) % CODES)
        assert bool(jnp.any(apply(changed, masked) != logits)) == (place % 2 == 0)
    assert jnp.any(apply(TOKENS, ~masked) != logits)


@pytest.mark.full
@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_half_precision_and_recomputation_change_nothing_but_rounding(kind):
    model, variables = model_and_variables(kind)
    inputs = (TOKENS, LABELS) if kind is CausalTransformer else (TOKENS, TOKENS > 5, LABELS)

    def gradient(**options):
        changed = model.clone(**options)

        def loss(params):
            return jnp.mean(jnp.square(changed.apply({"params": params}, *inputs, train=False)))

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, again, half = gradient(), gradient(remat=True), gradient(dtype="bfloat16")
    for x, y, z in zip(*map(jax.tree.leaves, (plain, again, half)), strict=True):
        # A constant on all keys changes nothing, so that its gradient is rounding.
        scale = float(jnp.max(jnp.abs(x))) + 1e-4
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * scale)
        assert z.dtype == jnp.float32
        assert float(jnp.sqrt(jnp.mean(jnp.square(x - z)))) < 0.1 * scale


def test_dropout_needs_training():
    model, variables = model_and_variables(dropout=0.5)
    one, two = (
        model.apply(variables, TOKENS, LABELS, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1)
    )
    assert jnp.any(one != two)
    without = model.apply(variables, TOKENS, LABELS, train=False)
    np.testing.assert_allclose(without, whole_pass()(TOKENS, LABELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CausalTransformer(**SIZE | {"dim": 18}), "dim must be a multiple of 4 for each of heads=2, got 18"),
        (lambda: MaskedTransformer(**SIZE | {"dim": 15}), "dim must be a multiple of heads=2, got 15"),
        (lambda: CausalTransformer(**SIZE, dropout=1.0), r"dropout must be a number in \[0, 1\), got 1.0"),
        (lambda: CausalTransformer(**SIZE | {"num_codes": 0}), "num_codes must be an integer"),
        (lambda: CausalTransformer(**SIZE | {"grid": (0, 4)}), "grid must be an integer"),
        (
            lambda: MaskedTransformer(**SIZE | {"num_codes": (4, 0)}),
            r"num_codes must be one or more integers in \[1, 1048576\], got \(4, 0\); give one for each level",
        ),
        (lambda: CausalTransformer(**SIZE, head_depth=0), r"head_depth must be an integer in \[1, \d+\], got 0"),
        (
            lambda: whole_pass(**OF_LEVELS)(CODES_OF_LEVELS[..., 0], LABELS),
            r"tokens must be integers of shape \[batch, 6, 3\], .*, got int32 of shape \[3, 6\]; give num_codes as a",
        ),
        (
            lambda: whole_pass()(TOKENS[..., None], LABELS),
            r"tokens must be integers of shape \[batch, 8\], .*, got int32 of shape \[3, 8, 1\]; give num_codes as a",
        ),
        (
            lambda: MaskedTransformer(**SIZE | OF_LEVELS).init(
                jax.random.key(0), CODES_OF_LEVELS, CODES_OF_LEVELS > 1, LABELS
            ),
            r"masked must be of shape \[3, 6\], got \[3, 6, 3\]; all codes of a position are masked together",
        ),
        (
            lambda: model_and_variables()[0].apply(
                model_and_variables()[1], LABELS, LABELS, 0, model_and_variables()[0].start_cache(3), 1, method="step"
            ),
            r"level must be an integer in \[0, 0\], got 1",
        ),
        (
            lambda: model_and_variables()[0].apply(model_and_variables()[1], TOKENS[:, :4], train=False),
            r"tokens must be integers of shape \[batch, 8\], row by row of grid=2 x 4, got int32 of shape \[3, 4\]",
        ),
        (
            lambda: model_and_variables()[0].apply(model_and_variables()[1], TOKENS, LABELS[:2], train=False),
            r"classes must be one for each of 3 images, got shape \[2\]",
        ),
        (
            lambda: model_and_variables()[0].apply(model_and_variables()[1], TOKENS),
            "train must be True or False for CausalTransformer",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises((UserError, TypeError), match=message):
        make()
