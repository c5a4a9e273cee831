"""Codebooks as options and pure functions of their variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import CODES, DIM, KEY, gaussian
from vqjax import EMACodebook, FrozenCodebook, GradientCodebook, LinearTransform, Replacement, UserError
from vqjax.functional import assign, ema_update, init_codebook, update_relative_usage
from vqjax.quantizers.codebooks import CODEBOOKS, Candidates

CODES_AT_FIRST = gaussian(CODES, DIM)
BATCH = assign(gaussian(20, DIM, seed=1), jnp.arange(20) % 5, CODES)


def test_moving_averages_are_those_of_the_pure_functions():
    codebook = EMACodebook(decay=0.9)
    variables, dead = codebook.update(codebook.create(CODES_AT_FIRST, False), BATCH, unit_norm=False)
    expected = ema_update(init_codebook(CODES_AT_FIRST), BATCH, decay=0.9)
    relative_usage = update_relative_usage(jnp.ones(CODES), BATCH.counts, decay=0.9)
    expected = expected._replace(relative_usage=relative_usage)._asdict()
    assert dead == 0
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize("kind", [EMACodebook, GradientCodebook])
def test_dead_codes_become_candidates_with_new_statistics(kind):
    codebook = kind(replace=Replacement(below=0.5))
    variables = codebook.create(CODES_AT_FIRST, False) | {"relative_usage": jnp.zeros(CODES).at[3].set(2.0)}
    candidates = Candidates(KEY, jnp.full((2, DIM), 7.0), None)
    variables, _ = codebook.update(variables, BATCH, unit_norm=False, candidates=candidates)
    others = np.arange(CODES) != 3
    np.testing.assert_allclose(codebook.stored(variables)[others], 7.0, rtol=1e-6)
    np.testing.assert_array_equal(variables["relative_usage"][others], 1.0)
    assert np.all(codebook.stored(variables)[3] != 7.0)


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("heads", [(), (2,)])
def test_the_variables_are_those_that_the_codebook_names(name, heads):
    codebook = CODEBOOKS[name]()
    codes = jnp.broadcast_to(CODES_AT_FIRST, (*heads, CODES, DIM))
    variables = codebook.create(codes, unit_norm=True)
    assert list(variables) == list(codebook.variable_names)
    looked_up = codebook.codes(variables, unit_norm=True)
    np.testing.assert_allclose(np.linalg.norm(looked_up, axis=-1), 1, rtol=1e-6)
    indices = jnp.zeros((5, *heads), jnp.int32)
    np.testing.assert_array_equal(codebook.codes_at(variables, indices, unit_norm=True)[4], looked_up[..., 0, :])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMACodebook(transform=LinearTransform()), "without parameters for an EMA codebook"),
        (
            lambda: GradientCodebook(transform=LinearTransform(), replace=Replacement()),
            r"transform must be invertible .* if codes are replaced, got LinearTransform",
        ),
    ],
)
def test_codebooks_refuse_transforms_that_do_not_suit_them(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (EMACodebook, {"decay": 1.0}, r"decay must be a number in \[0, 1\), got 1.0"),
        (EMACodebook, {"decay": -0.1}, r"decay must be .*, got -0.1"),
        (GradientCodebook, {"decay": float("nan")}, r"decay must be .*, got nan"),
        (GradientCodebook, {"weight": -1.0}, r"weight must be a finite number of at least 0, got -1.0"),
        (FrozenCodebook, {"weight": 0.5}, r"weight must be 1.0 unless the transform has parameters, got 0.5"),
        (FrozenCodebook, {"sync_nu": 0.1}, r"sync_nu must be 0.0 unless the transform has parameters, got 0.1"),
        (EMACodebook, {"dead_code_threshold": 2.0}, r"must be a fraction of the average use, in \[0, 1\), got 2.0"),
        (EMACodebook, {"smoothing": -1.0}, r"smoothing must be 0, or a small number such as 1e-5, got -1.0"),
        (EMACodebook, {"start": "full"}, r"start must be 'empty', 'one_token' or 'sums_only', got 'full'"),
        (EMACodebook, {"accumulation_steps": 0}, r"accumulation_steps must be a positive integer, got 0"),
        (EMACodebook, {"replace": True}, r"replace must be a Replacement\(...\), or None, got True"),
        (Replacement, {"below": 1.0}, r"below must be in \[0, 1\), or None, got 1.0"),
        (Replacement, {"below": None}, r"below must be a number if unused_after is None, got None; use replace=None"),
        (Replacement, {"unused_after": 0}, r"unused_after must be a positive integer, or None, got 0"),
    ],
)
def test_wrong_options_of_codebooks_are_refused(kind, arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        kind(**arguments)
