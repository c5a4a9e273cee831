"""What holds or frees the length of the latents: the norm in front of the lookup, and the form of the commitment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import gaussian
from vqjax import EMACodebook, GradientCodebook, VectorQuantizer

CODES, DIM, TOKENS = 16, 8, 64
KEY = jax.random.key(4)
NORMS = pytest.mark.parametrize("norm", ["rms", "layer"])


def create(**arguments):
    vq = VectorQuantizer(num_codes=CODES, **arguments)
    return vq, jax.jit(vq.init)(KEY, jnp.ones((1, DIM)))


@functools.partial(jax.jit, static_argnames="vq")
def gradients(vq, variables, z, g):
    """Of the loss alone, and of the output times g."""
    loss = jax.grad(lambda z: vq.apply(variables, z, train=False).loss)(z)
    return loss, jax.grad(lambda z: jnp.sum(g * vq.apply(variables, z, train=False).quantized))(z)


@NORMS
@pytest.mark.parametrize("codebook", [EMACodebook(), GradientCodebook()])
def test_codes_start_at_the_length_of_the_latents(norm, codebook):
    # Codes of length 1 beside latents of length sqrt(dim) stay unused.
    vq, variables = create(latent_norm=norm, codebook=codebook)
    codes = vq.apply(variables, method="code_vectors")
    latents = vq.apply(variables, gaussian(TOKENS, DIM) * 7, method="bypass")
    for vectors in (codes, latents):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), DIM**0.5, rtol=1e-5)
        if norm == "layer":
            np.testing.assert_allclose(np.mean(vectors, axis=-1), 0, atol=1e-6)


@NORMS
def test_behind_a_norm_the_scale_of_the_input_does_not_matter(norm):
    vq, variables = create(latent_norm=norm)
    z, g = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1)
    for factor in (1e-3, 30.0):
        np.testing.assert_array_equal(
            vq.apply(variables, factor * z, method="encode"), vq.apply(variables, z, method="encode")
        )
        for scaled, plain in zip(gradients(vq, variables, factor * z, g), gradients(vq, variables, z, g), strict=True):
            np.testing.assert_allclose(factor * scaled, plain, rtol=1e-3, atol=1e-5)
            # A direction along which nothing changes.
            np.testing.assert_allclose(np.sum(scaled * factor * z, -1), 0, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"distance": "cosine"}, {"latent_norm": "rms"}, {"latent_norm": "layer"}])
def test_the_gradient_of_the_estimator_can_pass_around_the_norm(options):
    z, g = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1)
    around, variables = create(estimator="straight_through", differentiate_norm=False, **options)
    loss, output = gradients(around, variables, z, g)
    np.testing.assert_array_equal(output, g)
    through = around.clone(differentiate_norm=True)
    np.testing.assert_array_equal(
        through.apply(variables, z, train=False).quantized, around.apply(variables, z, train=False).quantized
    )
    np.testing.assert_array_equal(gradients(through, variables, z, g)[0], loss)
    assert not np.allclose(gradients(through, variables, z, g)[1], g)


@pytest.mark.parametrize("commitment", ["squared", "relative", "angular"])
def test_each_commitment_and_its_pull_on_the_length(commitment):
    vq, variables = create(commitment=commitment, commitment_weight=1.0)
    z, g = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1)
    out = vq.apply(variables, z, train=False)
    x, q = np.float64(z), np.float64(out.quantized)
    squared = np.mean((x - q) ** 2)
    directions = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, q)]
    expected = {
        "squared": squared,
        "relative": squared / np.mean(x**2),
        "angular": np.mean(np.sum((directions[0] - directions[1]) ** 2, -1)),
    }[commitment]
    np.testing.assert_allclose(out.metrics["commitment_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["quantization_error"], squared, rtol=1e-5)
    loss, _ = gradients(vq, variables, z, g)
    # With s times the latents, the derivative of the loss by s at 1.
    pull = {
        "squared": 2 * np.mean(x * (x - q)),
        "relative": 2 * np.mean((x - q) * q) / np.mean(x**2),
        "angular": 0.0,
    }[commitment]
    np.testing.assert_allclose(np.sum(np.float64(loss) * x), pull, atol=1e-5)


@pytest.mark.full
def test_the_relative_commitment_is_that_of_all_devices():
    vq, variables = create(commitment="relative", axis_name="devices")
    alone = vq.clone(axis_name=None)
    z = gaussian(2, TOKENS, DIM) * jnp.array([[[1.0]], [[3.0]]])

    def mean_loss(z):
        out = jax.vmap(lambda z: vq.apply(variables, z, train=False).loss, axis_name="devices")(z)
        return jnp.mean(out)

    expected, slope = jax.value_and_grad(lambda z: alone.apply(variables, z, train=False).loss)(z)
    value, divided = jax.value_and_grad(mean_loss)(z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(divided, slope, atol=1e-6)
