"""Losses, gradients and metrics of the quantizer, with and without masked tokens."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import (
    CODES,
    DIM,
    codebooks,
    create,
    distances,
    every_second,
    gaussian,
    nearest,
    replacing,
    train,
    unit,
)
from vqjax import GradientCodebook
from vqjax.functional.metrics import perplexity


def mean_squared_error(x, y):
    return np.mean((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2)


@codebooks
def test_the_loss_is_the_weighted_sum_of_the_formula(codebook):
    learned = codebook == "gradient"
    vq, variables = create(codebook=GradientCodebook(1.7) if learned else codebook, commitment_weight=0.3)
    z = gaussian(20, DIM, seed=1)
    out = vq.apply(variables, z, train=False)
    error = mean_squared_error(z, out.quantized)
    np.testing.assert_allclose(out.loss, (0.3 + 1.7 * learned) * error, rtol=1e-5)
    for name in ("quantization_error", "commitment_loss", "codebook_loss"):
        np.testing.assert_allclose(out.metrics[name], error, rtol=1e-5)


def test_the_codebook_weight_is_one_by_default():
    vq, variables = create(codebook="gradient", commitment_weight=0.0)
    out = vq.apply(variables, gaussian(2, 3, DIM), train=False)
    np.testing.assert_allclose(out.loss, out.metrics["codebook_loss"], rtol=1e-6)


def test_the_encoder_learns_by_the_commitment_weight_and_the_codes_by_the_codebook_weight():
    # With one weight for both, a commitment weight of 0.25 also slows the codebook down fourfold.
    vq, variables = create(codebook=GradientCodebook(weight=1.7), commitment_weight=0.3)
    z = gaussian(20, DIM, seed=1)
    wrt_variables, wrt_z = jax.grad(lambda variables, z: vq.apply(variables, z, train=False).loss, argnums=(0, 1))(
        variables, z
    )
    codes = np.asarray(variables["params"]["codes"], np.float64)
    indices = nearest(z, codes)
    difference = 2 * (np.asarray(z, np.float64) - codes[indices]) / z.size
    np.testing.assert_allclose(wrt_z, 0.3 * difference, atol=1e-6)
    expected = np.zeros_like(codes)
    np.add.at(expected, indices, -1.7 * difference)
    np.testing.assert_allclose(wrt_variables["params"]["codes"], expected, atol=1e-6)


def test_the_task_reaches_the_encoder_through_the_estimator_and_never_the_codes():
    def triple(z, q):
        return jax.lax.stop_gradient(q) + 3 * (z - jax.lax.stop_gradient(z))

    z = gaussian(2, 3, DIM)
    for estimator in (triple, "rotation"):
        vq, variables = create(codebook="gradient", estimator=estimator)
        task = jax.grad(lambda vq, *arguments: jnp.sum(vq.apply(*arguments, train=False).quantized), argnums=(1, 2))
        wrt_variables, wrt_z = task(vq, variables, z)
        assert not any(np.any(x) for x in jax.tree.leaves(wrt_variables))
        assert np.all(wrt_z == 3) == (estimator is triple)


def test_ema_codes_receive_no_gradient():
    vq, variables = create()
    z = gaussian(2, 3, DIM)
    gradient = jax.grad(lambda v: (lambda out: out.loss + jnp.sum(out.quantized))(vq.apply(v, z, train=False)))(
        variables
    )
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_the_cosine_gradient_is_tangent_to_the_sphere():
    # Everything lives on the unit sphere, so the length of z can neither change the output nor be pushed.
    vq, variables = create(distance="cosine")
    z = gaussian(20, DIM)
    gradient = jax.grad(
        lambda z: (lambda out: out.loss + jnp.sum(out.quantized**3))(vq.apply(variables, z, train=False))
    )(z)
    np.testing.assert_allclose(np.sum(gradient * z, axis=1), 0, atol=1e-5)
    longer = vq.apply(variables, 7 * z, train=False)
    np.testing.assert_allclose(longer.loss, vq.apply(variables, z, train=False).loss, rtol=1e-5)
    assert np.all(np.linalg.norm(gradient, axis=1) > 1e-3)


def test_metrics_describe_the_batch():
    vq, variables = create()
    z = gaussian(20, DIM, seed=1)
    out = vq.apply(variables, z, train=False)
    counts = np.bincount(np.asarray(out.indices).reshape(-1), minlength=CODES)
    tokens, chosen = (np.asarray(x, np.float64).reshape(-1, DIM) for x in (z, out.quantized))
    np.testing.assert_allclose(out.metrics["perplexity"], perplexity(jnp.asarray(counts, jnp.float32)), rtol=1e-6)
    np.testing.assert_allclose(out.metrics["usage"], np.mean(counts > 0), rtol=1e-6)
    ratio = np.linalg.norm(chosen, axis=1) / np.linalg.norm(tokens, axis=1)
    np.testing.assert_allclose(out.metrics["norm_ratio"], ratio.mean(), rtol=1e-5)
    angles = np.arccos(np.sum(unit(tokens) * unit(chosen), axis=1))
    np.testing.assert_allclose(out.metrics["angle"], angles.mean(), rtol=1e-5)
    gradient = jax.grad(lambda z: sum(vq.apply(variables, z, train=False).metrics.values()))(z)
    assert not np.any(gradient)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@distances
def test_masked_equals_unpadded(distance, codebook):
    # vector-quantize-pytorch: 96.5 instead of 0.10 for the commitment loss of an all-true mask with cosine codes.
    vq, variables = create(distance=distance, codebook=codebook)
    z = gaussian(20, DIM, seed=1)
    mask = every_second((20,))
    padded = jnp.where(mask[:, None], z, jnp.nan)
    target = gaussian(20, DIM, seed=2)

    def loss(params, z, mask, target):
        out, state = train(vq, variables | params, z, mask)
        return out.loss + jnp.sum(out.quantized * target), (out, state)

    params = {"params": variables["params"]} if codebook == "gradient" else {}
    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (wrt_params, wrt_z), (out, state) = gradient(params, padded, mask, target)
    (expected_params, expected_z), (expected, expected_state) = gradient(params, z[::2], None, target[::2])
    np.testing.assert_array_equal(wrt_z[1::2], 0)
    np.testing.assert_array_equal(out.quantized[1::2], 0)
    np.testing.assert_array_equal(out.indices[1::2], -1)
    np.testing.assert_array_equal(out.indices[::2], expected.indices)
    chex.assert_trees_all_close(
        (wrt_params, wrt_z[::2], out.loss, out.metrics, state),
        (expected_params, expected_z, expected.loss, expected.metrics, expected_state),
        atol=1e-6,
    )


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@distances
def test_a_batch_without_a_valid_token_does_nothing(distance, codebook):
    # vector-quantize-pytorch: NaN.
    vq, variables = create(distance=distance, codebook=replacing(codebook, below=0.9))
    dead = variables["codebook"] | {"relative_usage": jnp.zeros(CODES)}
    variables = variables | {"codebook": dead}
    z, mask = jnp.full((6, DIM), jnp.nan), jnp.zeros(6, bool)

    def loss(variables, z):
        out, state = train(vq, variables, z, mask)
        return out.loss + jnp.sum(out.quantized), (out, state)

    gradient, (out, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, z)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    assert out.loss == 0
    assert all(np.isfinite(x) for x in out.metrics.values())
    moving = ("counts", "sums")  # decay alike, so that the codes they stand for do not move
    for name in set(state["codebook"]) - set(moving):
        np.testing.assert_array_equal(state["codebook"][name], variables["codebook"][name])
