"""Samplers against distributions that are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vqjax.errors import UserError
from vqjax.models.sampling import MASK_SCHEDULES, guided, halton_order, restricted, sample_causal, sample_masked

DRAWS = 20_000
KEY = jax.random.key(0)


def assert_drawn_from(tokens, probabilities):
    """A chi-square test of whole rows; codes are the axes of the probabilities."""
    codes = np.ravel_multi_index(tuple(np.asarray(tokens).T), probabilities.shape)
    counts = np.bincount(codes, minlength=probabilities.size)
    expected = probabilities.reshape(-1) * len(codes)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() == 1:
        return
    assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def numpy_restricted(p, temperature=1.0, top_k=None, top_p=None):
    p = p ** (1 / temperature)
    p = p / p.sum()
    order = np.argsort(-p)
    if top_k is not None:
        p[order[top_k:]] = 0
        p = p / p.sum()
    if top_p is not None:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
    return p / p.sum()


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 99},
    {"top_p": 0.6},
    {"top_p": 1.0},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.7},
]
FIVE = np.array([0.4, 0.05, 0.25, 0.1, 0.2])


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_draws_from_its_distribution(options):
    """A first token of five codes, and a second that depends on it."""
    second = np.stack([np.roll(FIVE, shift) for shift in range(5)])
    joint = numpy_restricted(FIVE.copy(), **options)[:, None] * np.stack(
        [numpy_restricted(row.copy(), **options) for row in second]
    )

    def step(previous, position, cache):
        return jnp.where(position == 0, jnp.log(jnp.asarray(FIVE)), jnp.log(jnp.asarray(second))[previous]), cache

    tokens = sample_causal(step, None, KEY, batch=DRAWS, positions=2, **options)
    assert_drawn_from(tokens, joint)


JOINT = np.array([[0.30, 0.02, 0.08], [0.05, 0.05, 0.20], [0.02, 0.25, 0.03]])


def conditionals(tokens, masked, progress):
    """Logits of two tokens by what is known of the other, under a joint distribution of both."""
    joint = jnp.asarray(JOINT)
    of_first = jnp.where(masked[:, 1:], joint.sum(1)[None], joint.T[tokens[:, 1]])
    of_second = jnp.where(masked[:, :1], joint.sum(0)[None], joint[tokens[:, 0]])
    return jnp.log(jnp.stack([of_first, of_second], axis=1))


@pytest.mark.parametrize(
    ("num_steps", "options", "expected"),
    [
        (1, {}, JOINT.sum(1)[:, None] * JOINT.sum(0)[None]),
        (2, {"schedule": "linear", "order": "random"}, JOINT),
        (2, {"schedule": "linear", "order": "halton", "grid": (1, 2)}, JOINT),
        # So much noise that likelihood decides nothing.
        (2, {"schedule": "linear", "choice_temperature": 1e6}, JOINT),
        (5, {"order": "random"}, JOINT),
    ],
)
def test_one_step_draws_tokens_apart_and_one_token_a_step_draws_them_together(num_steps, options, expected):
    tokens, masked = jnp.zeros((DRAWS, 2), jnp.int32), jnp.ones((DRAWS, 2), bool)
    drawn = sample_masked(conditionals, KEY, tokens, masked, num_steps=num_steps, **options)
    assert_drawn_from(drawn, expected)


# Of a code of two, and one of three that depends on it.
OF_LEVELS = np.array([[0.30, 0.10, 0.20], [0.05, 0.30, 0.05]])


def test_levels_are_drawn_together_with_those_before_them():
    """Two positions, the second of which begins with what the first has ended with, but for the missing code."""

    def step(previous, position, cache, level):
        if level == 1:
            return jnp.log(jnp.asarray(OF_LEVELS))[previous], cache
        return jnp.where(position == 0, jnp.log(OF_LEVELS.sum(1)), jnp.log(jnp.eye(2))[previous % 2]), cache

    tokens = sample_causal(step, None, KEY, batch=DRAWS, positions=2, levels=2)
    assert tokens.shape == (DRAWS, 2, 2)
    assert_drawn_from(tokens[:, 0], OF_LEVELS)
    np.testing.assert_array_equal(tokens[:, 1, 0], tokens[:, 0, 1] % 2)
    # The first code of a second position is 0 for the codes 0 and 2 before it.
    assert_drawn_from(tokens[tokens[:, 1, 0] == 0][:, 1, 1:], OF_LEVELS[0] / OF_LEVELS[0].sum())


FIRST, SECOND = np.array([0.5, 0.5]), np.array([0.6, 0.3, 0.1])


def logits_of_levels(tokens, masked, progress):
    """Of two levels of two positions; the second level of the first position equals that of the second, once known."""
    of_first = jnp.log(jnp.array([FIRST, [1, 1e-30]]))
    known = jnp.log(jnp.eye(3))[tokens[:, 1, 1]]
    of_second = jnp.where(masked[:, 1:], jnp.log(jnp.asarray(SECOND))[None], known)
    uniform = jnp.zeros_like(of_second)
    return jnp.tile(of_first[None], (len(tokens), 1, 1)), jnp.stack([of_second, uniform], axis=1)


def test_one_step_draws_levels_apart():
    tokens, masked = jnp.full((DRAWS, 2, 2), -1), jnp.ones((DRAWS, 2), bool)
    drawn = sample_masked(logits_of_levels, KEY, tokens, masked, num_steps=1)
    assert_drawn_from(drawn[:, 0], FIRST[:, None] * SECOND[None])
    assert_drawn_from(drawn[:, :, 1], SECOND[:, None] * np.full((1, 3), 1 / 3))


def test_a_position_is_kept_with_all_its_levels_by_their_product():
    """At most 0.5 x 0.6 for the first position, 1 x 1/3 for the second, which is kept although 0.6 is above 1/3."""
    tokens, masked = jnp.full((DRAWS, 2, 2), -1), jnp.ones((DRAWS, 2), bool)
    options = {"num_steps": 2, "schedule": "linear", "choice_temperature": 0.0}
    drawn = sample_masked(logits_of_levels, KEY, tokens, masked, **options)
    np.testing.assert_array_equal(drawn[:, 0, 1], drawn[:, 1, 1])
    assert_drawn_from(drawn[:, 0], FIRST[:, None] * np.full((1, 3), 1 / 3))


def test_the_likeliest_token_is_kept_first_without_noise():
    """The kept token is that of the larger probability, so that the other is drawn given it."""
    tokens, masked = jnp.zeros((DRAWS, 2), jnp.int32), jnp.ones((DRAWS, 2), bool)
    options = {"num_steps": 2, "schedule": "linear", "choice_temperature": 0.0}
    drawn = sample_masked(conditionals, KEY, tokens, masked, **options)
    first, second = JOINT.sum(1), JOINT.sum(0)
    expected = np.zeros_like(JOINT)
    for i, j in itertools.product(range(3), range(3)):
        # What was drawn at first, each token apart, and what came in the place of the one that was not kept.
        apart = first[i] * second[j]
        if first[i] > second[j]:
            expected[i] += apart * JOINT[i] / first[i]
        else:
            expected[:, j] += apart * JOINT[:, j] / second[j]
    assert_drawn_from(drawn, expected)


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_known_tokens_stay_and_the_others_are_drawn_given_them(order):
    tokens = jnp.stack([jnp.arange(DRAWS) % 3, jnp.zeros(DRAWS, jnp.int32)], axis=1)
    masked = jnp.broadcast_to(jnp.array([False, True]), (DRAWS, 2))
    drawn = sample_masked(conditionals, KEY, tokens, masked, num_steps=4, order=order, grid=(1, 2))
    np.testing.assert_array_equal(drawn[:, 0], tokens[:, 0])
    for first in range(3):
        assert_drawn_from(drawn[first::3, 1:], JOINT[first] / JOINT[first].sum())


def test_the_cosine_schedule_keeps_few_tokens_at_first():
    """Numbers of C.7 of the review of second stages: 64 tokens in 8 steps."""
    left = []

    def logits_of(tokens, masked, progress):
        jax.debug.callback(lambda number: left.append(int(number)), jnp.sum(masked), ordered=True)
        return jnp.zeros((1, 64, 4))

    tokens, masked = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool)
    jax.block_until_ready(sample_masked(logits_of, KEY, tokens, masked, num_steps=8))
    jax.effects_barrier()
    assert (-np.diff([*left, 0])).tolist() == [2, 3, 6, 8, 10, 11, 12, 12]


@pytest.mark.parametrize("name", MASK_SCHEDULES)
def test_schedules_fall_from_all_to_none(name):
    shares = MASK_SCHEDULES[name](jnp.linspace(0, 1, 20))
    assert float(shares[0]) == pytest.approx(1)
    assert float(shares[-1]) == pytest.approx(0, abs=1e-6)
    assert bool(jnp.all(jnp.diff(shares) < 0))


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 8)])
def test_the_halton_order_has_each_position_once(grid):
    assert sorted(halton_order(grid)) == list(range(grid[0] * grid[1]))


def test_the_halton_order_covers_the_grid_early():
    assert len({(place // 8 >= 4, place % 8 >= 4) for place in halton_order((8, 8))[:16]}) == 4


def test_numbers_of_any_library_restrict_alike(as_users_run_it):
    """Bug: those of NumPy were refused as out of range."""
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    expected = restricted(logits, temperature=0.5, top_p=0.75)
    for number in (np.float32, np.float64, jnp.float32):
        np.testing.assert_array_equal(restricted(logits, temperature=number(0.5), top_p=number(0.75)), expected)


def test_a_share_of_one_leaves_every_code():
    """Bug: the probabilities of many codes added up to 1 before the last ones."""
    logits = 4 * jax.random.normal(KEY, (2**18,))
    np.testing.assert_array_equal(restricted(logits, top_p=1.0), logits)


@pytest.mark.parametrize(("top_p", "left"), [(0.4, 1), (0.41, 2), (0.65, 2), (0.85, 3), (0.95, 4), (1e-46, 1)])
def test_the_fewest_codes_are_left_that_add_up_to_a_share(top_p, left):
    """Bug: rounding kept one code more where the sum is the share itself, and a tiny share left none."""
    logits = jnp.log(jnp.array([0.4, 0.05, 0.25, 0.1, 0.2]))
    assert int(jnp.sum(jnp.isfinite(restricted(logits, top_p=top_p)))) == left
    traced = jax.jit(lambda top_p: restricted(logits, top_p=top_p))(max(top_p, 1e-30))
    assert int(jnp.sum(jnp.isfinite(traced))) == left


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.5}])
def test_a_position_is_kept_by_the_likelihood_of_its_code_among_all(options):
    """Bug: among the only code that was left every position was equally sure."""
    seen = []

    def logits_of(tokens, masked, progress):
        jax.debug.callback(lambda masked: seen.append(masked.tolist()), masked)
        return jnp.log(jnp.array([[[0.9, 0.1], [0.6, 0.4]]]))

    tokens, masked = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    options = options | {"num_steps": 2, "schedule": "linear", "choice_temperature": 0.0}
    jax.block_until_ready(sample_masked(logits_of, KEY, tokens, masked, **options))
    jax.effects_barrier()
    assert seen == [[[True, True]], [[False, True]]]


def test_strict_promotion_stops_no_draw(request):
    """Bug: the number of masked tokens, an integer, was multiplied by a share."""
    request.addfinalizer(lambda: jax.config.update("jax_numpy_dtype_promotion", "standard"))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    tokens = jnp.zeros((1, 2), jnp.int32)
    drawn = jax.eval_shape(
        lambda key: sample_masked(conditionals, key, tokens, jnp.ones((1, 2), bool), num_steps=2), jax.random.key(0)
    )
    assert drawn.shape == (1, 2)


def test_guidance_of_one_is_none_and_of_zero_has_no_class():
    c, u = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
    np.testing.assert_array_equal(guided(c, u, 1.0), c)
    np.testing.assert_array_equal(guided(c, u, 0.0), u)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: restricted(jnp.zeros(3), temperature=0.0), "temperature must be a finite number above 0, got 0.0"),
        (lambda: restricted(jnp.zeros(3), top_k=0), "top_k must be a positive integer, got 0"),
        (lambda: restricted(jnp.zeros(3), top_p=1.5), r"top_p must be a number in \(0, 1\], or None, got 1.5"),
        (
            lambda: sample_masked(
                conditionals, KEY, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), num_steps=1, order="halton"
            ),
            "grid must be rows and columns of 2 tokens for order='halton', got None",
        ),
        (
            lambda: sample_masked(
                conditionals, KEY, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), num_steps=1, schedule="cos"
            ),
            "schedule must be one of 'cosine', 'arccos', 'linear', 'square', got 'cos'",
        ),
        (
            lambda: sample_masked(
                logits_of_levels, KEY, jnp.zeros((1, 2, 3), jnp.int32), jnp.ones((1, 2), bool), num_steps=1
            ),
            r"tokens must be of shape \[1, 2, 2\] for the logits of logits_of, got \[1, 2, 3\]; a tuple of logits",
        ),
        (
            lambda: sample_causal(conditionals, None, KEY, batch=1, positions=1, levels=0),
            "levels must be a positive integer, got 0",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
