"""Exact and Hessian gradients against those of the decoder's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.estimators import exact_gradient, hessian_gradient

TOKENS, DIM = 12, 3
BF16, F32 = jnp.bfloat16, jnp.float32
Z, Q = gaussian(TOKENS, DIM), gaussian(TOKENS, DIM, seed=1)


def decoder_loss(params, vectors):
    hidden = jnp.tanh(vectors @ params["kernel"])
    return jnp.sum(jnp.square(hidden)) + jnp.sum(vectors**3), hidden.shape


@pytest.mark.full
def test_exact_and_hessian_gradients_are_those_of_the_decoder():
    params = {"kernel": gaussian(DIM, 4, seed=5)}
    loss = lambda params, vectors: decoder_loss(params, vectors)[0]  # noqa: E731
    of_params, of_vectors = jax.grad(loss, argnums=(0, 1))(params, Q)
    hessian = jax.hessian(loss, argnums=1)(params, Q)
    expected = {
        exact_gradient: jax.grad(loss, argnums=1)(params, Z),
        hessian_gradient: of_vectors + jnp.einsum("nidj,dj->ni", hessian.transpose(0, 1, 2, 3), Z - Q),
    }
    for route, to_z in expected.items():
        run = lambda params, z, q, route=route: route(decoder_loss, params, z, q)  # noqa: E731
        (value, aux), gradients = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(params, Z, Q)
        np.testing.assert_allclose(value, loss(params, Q), rtol=1e-6)
        assert aux == (TOKENS, 4)
        np.testing.assert_allclose(gradients[0]["kernel"], of_params["kernel"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradients[1], to_z, rtol=1e-4, atol=1e-4)
        assert float(jnp.max(jnp.abs(gradients[2]))) == 0


@pytest.mark.parametrize("route", [exact_gradient, hessian_gradient])
@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32)])
def test_decoder_gradients_take_any_dtypes_and_any_encoder(route, dtypes):
    """Once a loss that overflowed at the encoder's vectors made the value NaN as well."""
    loss = lambda scale, x: (jnp.sum(scale * x.astype(F32) ** 2), None)  # noqa: E731
    y, q = jnp.full((2, 2), 1e25, dtypes[0]), jnp.full((2, 2), 2.0, dtypes[1])
    (value, _), to_y = jax.value_and_grad(lambda y: route(loss, 1.0, y, q), has_aux=True)(y)
    assert (float(value), to_y.dtype) == (16.0, y.dtype)
    np.testing.assert_allclose(to_y.astype(F32), 2e25, rtol=1e-2)
