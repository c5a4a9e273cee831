"""Codebook state against NumPy loops, and the ways in which codebooks of other libraries died."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian, half_masked
from vqjax.functional.codebook import (
    Assignment,
    Codebook,
    assign,
    dead_codes,
    ema_update,
    init_codebook,
    replace_codes,
    sample_latents,
    unused_codes,
    update_idle,
    update_relative_usage,
)
from vqjax.functional.search import nearest_codes

TOKENS, CODES, DIM = 60, 10, 3
KEY = jax.random.key(7)
E = gaussian(CODES, DIM, seed=1)


def assert_equal_states(actual, expected, **tolerance):
    for name in Codebook._fields:
        compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
        compare(getattr(actual, name), getattr(expected, name), err_msg=name, **tolerance)


def test_assign_counts_and_sums_the_tokens_of_each_code():
    z, indices = gaussian(TOKENS, DIM), np.random.default_rng(1).integers(0, CODES - 1, TOKENS)
    batch = assign(z, jnp.asarray(indices), CODES)
    np.testing.assert_array_equal(batch.counts, np.bincount(indices, minlength=CODES))
    expected = [np.sum(np.asarray(z, np.float64)[indices == code], axis=0) for code in range(CODES)]
    np.testing.assert_allclose(batch.sums, expected, atol=1e-5)


def test_masked_tokens_are_not_assigned_even_if_they_are_nan():
    z, mask, valid = half_masked(TOKENS, DIM)
    indices = jnp.arange(TOKENS) % CODES
    for actual, expected in zip(assign(z, indices, CODES, mask), assign(valid, indices[::2], CODES), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_an_index_without_a_code_does_not_count(masked):
    """-1 was the last code."""
    z, indices = jnp.arange(4.0)[:, None] + 1, jnp.array([-1, 0, 3, 1])
    batch = assign(z, indices, 3, jnp.ones(4, bool) if masked else None)
    assert batch.counts.tolist() == [1.0, 1.0, 0.0]
    assert batch.sums[:, 0].tolist() == [2.0, 4.0, 0.0]


def test_counts_do_not_stop_where_a_short_float_stops():
    # Counting in bfloat16 ends at 256.
    batch = assign(jnp.ones((1000, 1), jnp.bfloat16), jnp.zeros(1000, jnp.int32), 2)
    assert batch.counts.tolist() == [1000.0, 0.0]
    assert batch.sums[:, 0].tolist() == [1000.0, 0.0]


@pytest.mark.parametrize("unit_norm", [False, True])
def test_ema_is_the_formula_of_the_paper_without_smoothing(unit_norm):
    decay, state = 0.9, init_codebook(gaussian(CODES, DIM, seed=1))
    counts, sums = np.zeros(CODES), np.zeros((CODES, DIM))
    codes = np.asarray(state.codes, np.float64)
    for step in range(5):
        z = np.asarray(gaussian(TOKENS, DIM, seed=10 + step), np.float64)
        indices = np.argmin(np.sum((z[:, None] - codes) ** 2, -1), axis=1)
        batch = assign(jnp.asarray(z, jnp.float32), nearest_codes(jnp.asarray(z, jnp.float32), state.codes), CODES)
        state = ema_update(state, batch, decay=decay, unit_norm=unit_norm)
        for code in range(CODES):
            tokens = z[indices == code]
            counts[code] = decay * counts[code] + (1 - decay) * len(tokens)
            sums[code] = decay * sums[code] + (1 - decay) * tokens.sum(0)
            if len(tokens):
                codes[code] = sums[code] / counts[code]
                codes[code] /= np.linalg.norm(codes[code]) if unit_norm else 1
        np.testing.assert_allclose(state.counts, counts, rtol=1e-5)
        np.testing.assert_allclose(state.sums, sums, atol=1e-5)
        np.testing.assert_allclose(state.codes, codes, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 1e-5])
def test_a_batch_without_tokens_changes_nothing(smoothing):
    """Bug: the averages decayed, so that the next batch moved the codes farther than it should."""
    z = gaussian(TOKENS, DIM)
    batch = assign(z, nearest_codes(z, E), CODES)
    state = ema_update(init_codebook(E), batch, decay=0.9, smoothing=smoothing)
    nothing = Assignment(jnp.zeros(CODES), jnp.zeros((CODES, DIM)))
    after = ema_update(state, nothing, decay=0.9, smoothing=smoothing)
    for name in Codebook._fields:
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name))


def test_an_unused_code_keeps_its_bits_for_a_thousand_steps():
    # Laplace smoothing takes it to the origin: 2e-6 after 100 steps at decay 0.8. The first step with counts of zero
    # multiplied it by 8e4 in the rotation trick's own code.
    state = init_codebook(gaussian(2, DIM))
    batch = assign(gaussian(4, DIM, seed=1), jnp.zeros(4, jnp.int32), 2)
    update = jax.jit(lambda state: jax.lax.fori_loop(0, 1000, lambda _, s: ema_update(s, batch, decay=0.8), state))
    final = update(state)
    np.testing.assert_array_equal(final.codes[1], state.codes[1])
    np.testing.assert_allclose(final.codes[0], batch.sums[0] / 4, rtol=1e-5)


def test_a_used_code_that_was_unused_for_long_moves_to_its_token():
    state = Codebook(jnp.ones((1, 1)), jnp.array([1e-30]), jnp.array([[1e-30]]), jnp.ones(1))
    batch = assign(jnp.array([[3.0]]), jnp.array([0]), 1)
    np.testing.assert_allclose(ema_update(state, batch, decay=0.99).codes, [[3.0]], rtol=1e-6)


def test_a_unit_code_keeps_its_place_when_its_tokens_cancel():
    state = init_codebook(jnp.array([[0.0, 1.0]]))
    batch = assign(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([0, 0]), 1)
    assert ema_update(state, batch, decay=0.9, unit_norm=True).codes.tolist() == [[0.0, 1.0]]


def test_smoothing_is_laplace_and_drags_unused_codes_to_the_origin():
    state = init_codebook(E, "one_token")
    batch = Assignment(jnp.zeros(CODES).at[0].set(10.0), jnp.zeros((CODES, DIM)).at[0].set(3.0))
    after = ema_update(state, batch, decay=0.8, smoothing=1e-2)
    counts = 0.8 + 0.2 * np.asarray(batch.counts, np.float64)
    smoothed = (counts + 1e-2) / (counts.sum() + CODES * 1e-2) * counts.sum()
    sums = 0.8 * np.asarray(E, np.float64) + 0.2 * np.asarray(batch.sums)
    np.testing.assert_allclose(after.codes, sums / smoothed[:, None], rtol=1e-5)
    for _ in range(100):
        after = ema_update(after, batch, decay=0.8, smoothing=1e-5)
    assert float(jnp.max(jnp.abs(after.codes[1:]))) < 1e-4


def test_a_code_that_no_token_has_chosen_keeps_its_value_under_smoothing():
    """Bug: without counts and sums it became zero in the first step."""
    batch = Assignment(jnp.zeros(CODES).at[0].set(10.0), jnp.zeros((CODES, DIM)).at[0].set(3.0))
    for smoothing in (1e-5, jnp.float32(1e-5)):
        after = ema_update(init_codebook(E), batch, decay=0.8, smoothing=smoothing)
        np.testing.assert_array_equal(after.codes[1:], E[1:])
        assert not np.array_equal(after.codes[0], E[0])


def test_the_official_start_throws_unused_codes_far_away_at_first():
    # Measured in reference code: unused codes are multiplied by about 8e4 after the first step.
    batch = Assignment(jnp.zeros(CODES).at[0].set(10.0), jnp.zeros((CODES, DIM)).at[0].set(3.0))
    after = ema_update(init_codebook(E, "sums_only"), batch, decay=0.8, smoothing=1e-5)
    growth = np.linalg.norm(after.codes[1:], axis=-1) / np.linalg.norm(E[1:], axis=-1)
    np.testing.assert_allclose(growth, 0.8 / 1e-5, rtol=1e-3)


def test_a_decay_per_code_freezes_the_code_whose_decay_is_one():
    batch = Assignment(jnp.full(CODES, 2.0), jnp.ones((CODES, DIM)))
    decay = jnp.linspace(0.5, 1.0, CODES)
    after = ema_update(init_codebook(E, "one_token"), batch, decay=decay, smoothing=1e-5)
    np.testing.assert_array_equal(after.codes[-1], E[-1])
    for k in range(3):
        alone = ema_update(init_codebook(E, "one_token"), batch, decay=float(decay[k]))
        np.testing.assert_allclose(after.codes[k], alone.codes[k], rtol=1e-4)


def test_usage_is_relative_to_the_average_use():
    counts = jnp.array([6.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(update_relative_usage(jnp.ones(4), counts, decay=0.9), [1.2, 1.0, 0.9, 0.9], rtol=1e-6)
    # The peers compare an absolute count with their threshold, so that the batch size decides which codes are dead.
    np.testing.assert_array_equal(
        update_relative_usage(jnp.ones(4), counts, decay=0.9), update_relative_usage(jnp.ones(4), 4 * counts, decay=0.9)
    )


def test_a_batch_without_tokens_moves_no_usage():
    relative_usage = jnp.array([0.1, 1.9])
    np.testing.assert_array_equal(update_relative_usage(relative_usage, jnp.zeros(2), decay=0.5), relative_usage)


def test_a_code_at_the_threshold_is_alive():
    below, above = np.nextafter(np.float32(0.25), np.float32([0, 1]))
    assert dead_codes(jnp.array([0.25, below, above]), 0.25).tolist() == [False, True, False]


def test_idle_counts_batches_and_an_empty_batch_counts_for_none():
    idle = jnp.array([3, 0, 7])
    np.testing.assert_array_equal(update_idle(idle, jnp.array([0.0, 5.0, 0.0])), [4, 0, 8])
    np.testing.assert_array_equal(update_idle(idle, jnp.zeros(3)), idle)
    np.testing.assert_array_equal(unused_codes(jnp.array([4, 0, 8]), 8), [False, False, True])


def test_tokens_are_drawn_without_replacement():
    z = jnp.arange(100.0)[:, None]
    drawn = np.asarray(sample_latents(KEY, z, 60))[:, 0]
    assert len(set(drawn.tolist())) == 60
    other = np.asarray(sample_latents(jax.random.key(8), z, 60))[:, 0]
    assert set(other.tolist()) != set(drawn.tolist())


def test_every_token_is_drawn_equally_often():
    z = jnp.arange(10.0)[:, None]
    draw = jax.jit(jax.vmap(lambda key: sample_latents(key, z, 3)))
    drawn = np.asarray(draw(jax.random.split(KEY, 5000)))
    share = np.bincount(drawn.astype(int).reshape(-1), minlength=10) / 15000
    # Six standard deviations of a binomial share.
    np.testing.assert_allclose(share, 0.1, atol=0.015)


def test_masked_tokens_are_never_drawn_even_when_the_others_run_out():
    z, mask, valid = half_masked(TOKENS, DIM)
    drawn = np.asarray(sample_latents(KEY, z, 2 * TOKENS, mask))
    rows, times = np.unique(drawn, axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, np.unique(valid, axis=0))
    assert set(times.tolist()) == {4}


def test_replaced_codes_are_distinct_tokens_and_start_afresh():
    # A reset of the code alone is undone by the next moving average of its stale sum (espnet issue 6284).
    z = gaussian(TOKENS, DIM)
    old = Codebook(gaussian(CODES, DIM, seed=1), jnp.full(CODES, 3.0), jnp.ones((CODES, DIM)), jnp.full(CODES, 0.2))
    replaced = jnp.arange(CODES) % 3 == 0
    new = replace_codes(KEY, old, replaced, z)
    kept = ~np.asarray(replaced)
    assert_equal_states(jax.tree.map(lambda x: x[kept], new), jax.tree.map(lambda x: x[kept], old))
    rows = [np.flatnonzero(np.all(np.asarray(z) == code, axis=1)) for code in np.asarray(new.codes)[~kept]]
    assert len({int(row[0]) for row in rows}) == 4
    assert_equal_states(jax.tree.map(lambda x: x[~kept], new), init_codebook(new.codes[~kept]))
    # Its next token moves it all the way, as a new code's first token does.
    batch = assign(jnp.full((1, DIM), 5.0), jnp.array([0]), CODES)
    np.testing.assert_allclose(ema_update(new, batch, decay=0.99).codes[0], 5.0, rtol=1e-6)


def test_nothing_is_replaced_when_every_token_is_masked():
    old = init_codebook(gaussian(CODES, DIM, seed=1))
    nothing = jnp.zeros(TOKENS, bool)
    new = replace_codes(KEY, old, jnp.ones(CODES, bool), jnp.full((TOKENS, DIM), jnp.nan), nothing)
    assert_equal_states(new, old)


def test_masked_tokens_replace_no_code():
    z, mask, valid = half_masked(TOKENS, DIM)
    new = replace_codes(KEY, init_codebook(gaussian(CODES, DIM)), jnp.ones(CODES, bool), z, mask)
    assert {tuple(code) for code in new.codes.tolist()} <= {tuple(token) for token in valid.tolist()}


def test_dead_code_replacement_comes_to_rest():
    # The README of vector-quantize-pytorch (1024 tokens, 512 codes, decay 0.8, its threshold 2) replaces 501 codes in
    # every step. Here a code has log(threshold)/log(decay) batches to find tokens, and then most are in use.
    z, decay, threshold, steps = gaussian(1024, 64), 0.8, 0.05, 60

    def step(state, key):
        batch = assign(z, nearest_codes(z, state.codes), 512)
        state = ema_update(state, batch, decay=decay)
        state = state._replace(relative_usage=update_relative_usage(state.relative_usage, batch.counts, decay=decay))
        dead = dead_codes(state.relative_usage, threshold)
        return replace_codes(key, state, dead, z), jnp.sum(dead)

    start = init_codebook(gaussian(512, 64, seed=1) / 8)
    _, replaced = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys))(start, jax.random.split(KEY, steps))
    grace = int(np.ceil(np.log(threshold) / np.log(decay)))
    replaced = np.asarray(replaced)
    assert np.sum(replaced[: grace - 1]) == 0
    assert np.sum(replaced[:grace]) > 100
    assert np.mean(replaced[-2 * grace :]) < 10
