"""Regularizers against float64 NumPy, over devices, and in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from helpers.arrays import gaussian
from vqjax.errors import UserError
from vqjax.functional import chunks
from vqjax.functional.regularizers import (
    Diversity,
    EntropyLoss,
    EntropyPenalty,
    Orthogonality,
    Region,
    assignment_entropies,
    orthogonality,
    region_targets,
)

TOKENS, CODES, DIM = 32, 6, 3


Z, E = gaussian(TOKENS, DIM), gaussian(CODES, DIM, seed=1)


def entropies(z, codes, inverse_temperature, distance="euclidean"):
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    scores = z @ codes.T if distance == "cosine" else -np.linalg.norm(z[:, None] - codes, axis=-1)
    p = np.exp(inverse_temperature * scores)
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    return -(p * np.log(p)).sum(-1).mean(), -(mean * np.log(mean)).sum()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_entropies_are_their_definition(distance):
    measured = assignment_entropies(Z, E, inverse_temperature=2.0, distance=distance)
    np.testing.assert_allclose(measured, entropies(Z, E, 2.0, distance), rtol=1e-5)


def test_the_gradient_is_that_of_the_definition_by_finite_differences():
    direction = np.asarray(gaussian(CODES, DIM, seed=2), np.float64)
    for which in range(2):
        gradient = jax.grad(lambda e, which=which: assignment_entropies(Z, e, inverse_temperature=2.0)[which])(E)
        step = 1e-5
        up, down = (entropies(Z, np.asarray(E, np.float64) + s * direction, 2.0)[which] for s in (step, -step))
        np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), (up - down) / (2 * step), rtol=1e-3)


def test_parts_and_whole_agree_in_value_and_gradient(monkeypatch):
    mask = jnp.arange(TOKENS) % 3 != 0

    def both(z):
        return sum(assignment_entropies(z, E, inverse_temperature=3.0, mask=mask))

    whole = jax.value_and_grad(both)(Z)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 7 * CODES)
    for part, expected in zip(jax.value_and_grad(both)(Z), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_the_batch_entropy_is_global_over_devices_and_so_is_its_gradient():
    # vector-quantize-pytorch takes the entropy per process: two with 1 and 2 tokens give two answers.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mask = jnp.arange(TOKENS) >= 6

    def step(z, mask, axis_name=None):
        average = (lambda x: jax.lax.pmean(x, axis_name)) if axis_name else (lambda x: x)

        def loss(codes):
            return average(sum(assignment_entropies(z, codes, inverse_temperature=2.0, mask=mask, axis_name=axis_name)))

        value, gradient = jax.value_and_grad(loss)(E)
        return value, gradient

    mapped = jax.shard_map(
        lambda z, mask: step(z, mask, "data"), mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=True
    )
    for actual, expected in zip(mapped(Z, mask), step(Z, mask), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_tokens_that_equal_codes_have_finite_gradients():
    gradient = jax.grad(lambda z: sum(assignment_entropies(z, E)))(jnp.concatenate([E, E]))
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_a_batch_without_a_token_that_counts_has_finite_gradients():
    nothing = jnp.zeros(TOKENS, bool)
    value, slope = jax.value_and_grad(lambda z: sum(assignment_entropies(z, E, mask=nothing)))(Z)
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_what_a_masked_token_holds_does_not_count(distance):
    """Bug: a NaN there made both entropies NaN."""
    mask = jnp.arange(len(Z)) % 3 != 0
    spoiled = jnp.where(mask[:, None], Z, jnp.nan)
    measure = lambda z: sum(assignment_entropies(z, E, mask=mask, distance=distance))  # noqa: E731
    for expected, found in zip(jax.value_and_grad(measure)(Z), jax.value_and_grad(measure)(spoiled), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_codes_without_a_direction_are_orthogonal():
    """Bug: of no active code, or of codes of zero, the penalty was below 0."""
    assert float(orthogonality(E, jnp.zeros(len(E), bool))) == 0
    assert float(orthogonality(jnp.zeros((4, 3)))) == 0


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_orthogonality_is_its_definition_on_both_sides(shape):
    codes = gaussian(*shape)
    unit = np.asarray(codes, np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    expected = np.sum((unit @ unit.T) ** 2) / shape[0] ** 2 - 1 / shape[0]
    np.testing.assert_allclose(orthogonality(codes), expected, rtol=1e-4, atol=1e-6)


def test_inactive_codes_do_not_count():
    active = jnp.array([True, False, True, True, False, False])
    np.testing.assert_allclose(orthogonality(E, active), orthogonality(E[jnp.array([0, 2, 3])]), rtol=1e-5)
    value = Orthogonality(1.0, active_only=True)(Z, E, active.astype(jnp.float32), None, None, "euclidean")
    np.testing.assert_allclose(value, orthogonality(E, active))


def test_diversity_and_penalty_are_made_of_the_entropies():
    per_token, batch = assignment_entropies(Z, E, inverse_temperature=5.0)
    assert float(Diversity(1.0, 5.0)(Z, E, jnp.zeros(CODES), None, None, "euclidean")) == pytest.approx(-float(batch))
    penalty = EntropyPenalty(1.0, 5.0)(Z, E, jnp.zeros(CODES), None, None, "euclidean")
    assert float(penalty) == pytest.approx(float(per_token - batch))


def entropy_loss(z, codes, temperature, choices=None):
    """The formula of MaskGIT in float64: squared distances; ``choices`` holds the codes of the argmax form constant."""
    z, codes = np.asarray(z, np.float64), np.asarray(codes, np.float64)
    logits = -np.sum((z[:, None] - codes) ** 2, axis=-1) / temperature
    log_p = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
    log_p -= logits.max(-1, keepdims=True)
    target = np.exp(log_p) if choices is None else np.eye(len(codes))[choices]
    mean = target.mean(0)
    return -np.sum(target * log_p, -1).mean() + np.sum(mean[mean > 0] * np.log(mean[mean > 0]))


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("form", ["softmax", "argmax"])
def test_the_entropy_loss_is_the_formula_of_maskgit(form, temperature):
    choices = np.argmin(np.sum((np.asarray(Z)[:, None] - np.asarray(E)) ** 2, axis=-1), axis=-1)
    expected = entropy_loss(Z, E, temperature, choices if form == "argmax" else None)
    for distance in ("euclidean", "cosine"):
        measured = EntropyLoss(0.1, temperature, form)(Z, E, jnp.zeros(CODES), None, None, distance)
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_softmax_form_is_that_of_the_formula():
    direction = np.asarray(gaussian(CODES, DIM, seed=2), np.float64)
    slope = np.asarray(jax.grad(lambda e: EntropyLoss(1.0, 0.5)(Z, e, jnp.zeros(CODES)))(E))
    up, down = (entropy_loss(Z, np.asarray(E, np.float64) + s * direction, 0.5) for s in (1e-5, -1e-5))
    np.testing.assert_allclose(np.sum(slope * direction), (up - down) / 2e-5, rtol=1e-3)


def test_the_gradient_of_the_argmax_form_passes_the_choice_straight_through():
    # By hand, for probabilities p and choices c: sum_n dp_n . (log mean - log p_n) / N - sum_n c_n . d log p_n / N.
    logits = gaussian(TOKENS, CODES, seed=3)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    chosen = np.eye(CODES)[np.argmax(logits, axis=-1)]
    mean = chosen.mean(0)
    of_p = (-np.log(p) + np.log(np.maximum(mean, np.finfo(np.float32).tiny))) / TOKENS
    through_p = p * (of_p - np.sum(p * of_p, -1, keepdims=True))
    expected = through_p - (chosen - p) / TOKENS
    # Unit vectors along the axes as codes make the logits of squared distances those of the latents.
    slope = jax.grad(lambda z: EntropyLoss(1.0, 2.0, "argmax")(z, jnp.eye(CODES), jnp.zeros(CODES)))(logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-5)


def targets_of_region(codes, counts, sums):
    """Region VQ by loops, in float64 and whole numbers: the targets that each code is given."""
    codes, sums, counts = np.asarray(codes, np.float64), np.asarray(sums, np.float64), np.asarray(counts, int)
    given = {k: [sums[k] / counts[k]] for k in np.flatnonzero(counts)}
    without, several = np.flatnonzero(counts == 0), np.flatnonzero(counts > 1)
    for k in several:
        number = -(-int(counts[k]) * len(without) // int(counts[several].sum()))
        distances = np.sum((codes[without] - codes[k]) ** 2, axis=-1)
        for j in without[np.argsort(distances, kind="stable")[:number]]:
            given.setdefault(j, []).append(sums[k] / counts[k])
    return {k: np.mean(targets, axis=0) for k, targets in given.items()}


COUNTS_OF_REGION = {
    # More busy codes than are taken at a time, and codes of one token, which give nothing.
    "many": np.random.default_rng(0).integers(0, 4, 200),
    "quotients without a remainder": np.array([6, 3, 0, 0, 0, 3, 0, 1]),
    "one for all": np.array([0, 0, 9, 0]),
    "no code is busy": np.array([1, 0, 1]),
    "all have tokens": np.array([2, 1, 3]),
    "no token": np.zeros(3, int),
}


@pytest.mark.parametrize("name", COUNTS_OF_REGION)
def test_targets_and_gradient_of_region_are_those_of_its_definition(name):
    counts = COUNTS_OF_REGION[name]
    codes = gaussian(len(counts), DIM, seed=4)
    sums = gaussian(len(counts), DIM, seed=5) * (counts > 0)[:, None]
    expected = targets_of_region(codes, counts, sums)
    counts = jnp.asarray(counts, jnp.float32)
    targets, has_target = region_targets(codes, counts, sums)
    np.testing.assert_array_equal(np.flatnonzero(has_target), sorted(expected))
    for k, target in expected.items():
        np.testing.assert_allclose(targets[k], target, rtol=1e-5, atol=1e-6)
    value, slope = jax.value_and_grad(lambda e: Region(1.0)(Z, e, counts, sums=sums))(codes)
    differences = np.zeros(codes.shape)
    for k, target in expected.items():
        differences[k] = np.asarray(codes[k], np.float64) - target
    number = max(1, len(expected)) * DIM
    np.testing.assert_allclose(value, np.sum(differences**2) / number, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slope, 2 * differences / number, rtol=1e-4, atol=1e-6)


def test_of_equally_near_codes_the_first_take_a_target():
    codes, counts = jnp.zeros((6, 1)), jnp.array([0.0, 2.0, 0.0, 4.0, 0.0, 0.0])
    targets, has_target = region_targets(codes, counts, jnp.array([[0.0], [2.0], [0.0], [8.0], [0.0], [0.0]]))
    # Four codes without tokens: the first two for the code of two tokens, the first three for that of four.
    np.testing.assert_allclose(targets[:, 0], [1.5, 1.0, 1.5, 2.0, 2.0, 0.0])
    np.testing.assert_array_equal(has_target, [True, True, True, True, True, False])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0"),
        ({"form": "hard"}, "form must be 'softmax' or 'argmax', got 'hard'"),
    ],
)
def test_wrong_settings_of_the_entropy_loss_are_refused(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        EntropyLoss(0.1, **arguments)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Orthogonality, Diversity, EntropyPenalty, EntropyLoss, Region])
def test_wrong_weights_are_refused(kind, weight):
    with pytest.raises(UserError, match=r"weight must be a finite number of at least 0, got"):
        kind(weight)
