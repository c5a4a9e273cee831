"""The quantizer under JAX's transformations and inside other models."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.quantizing import CODES, DIM, KEY, create, gaussian, replacing
from vqjax import FrozenCodebook, LinearTransform, UserError, VectorQuantizer


def all_of_it(vq, variables, z):
    out, changed = vq.apply(variables, z, train=True, mutable=["codebook"], rngs={"quantizer": KEY})
    return out.loss + jnp.sum(out.quantized**3), (out, changed)


@pytest.mark.full
@pytest.mark.parametrize(("distance", "codebook"), [("euclidean", "ema"), ("cosine", "gradient")])
def test_jit_and_checkpoint_change_nothing(distance, codebook):
    vq, variables = create(distance=distance, codebook=replacing(codebook, below=0.99))
    z = gaussian(2, 3, DIM)
    gradient = jax.grad(all_of_it, argnums=(1, 2), has_aux=True)
    expected = gradient(vq, variables, z)
    chex.assert_trees_all_close(jax.jit(gradient, static_argnums=0)(vq, variables, z), expected, atol=1e-6)
    remat = jax.grad(jax.checkpoint(all_of_it, static_argnums=0), argnums=(1, 2), has_aux=True)
    chex.assert_trees_all_close(remat(vq, variables, z), expected, atol=1e-6)


@pytest.mark.full
def test_vmap_over_codebooks(as_users_run_it):
    vq, _ = create()
    z = gaussian(3, 20, DIM)
    variables = jax.vmap(vq.init, in_axes=(0, None))(jax.random.split(KEY, 3), z[0])
    out = jax.vmap(lambda variables, z: vq.apply(variables, z, train=False))(variables, z)
    for head in range(3):
        own_variables, own_out = jax.tree.map(lambda x, head=head: x[head], (variables, out))
        chex.assert_trees_all_close(own_out, vq.apply(own_variables, z[head], train=False), atol=1e-6)


class Autoencoder(nn.Module):
    """A borrower's model."""

    @nn.compact
    def __call__(self, x, train):
        out = VectorQuantizer(num_codes=CODES, name="vq")(nn.Dense(DIM)(x), train=train)
        return nn.Dense(x.shape[-1])(out.quantized), out.loss


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: nn.remat(module, static_argnums=2)])
def test_inside_a_linen_model(wrap):
    model, x = wrap(Autoencoder)(), gaussian(20, 5)
    variables = model.init(KEY, x, False)

    def loss(params):
        (y, loss), changed = model.apply(variables | {"params": params}, x, True, mutable=["codebook"])
        return jnp.mean((y - x) ** 2) + loss, changed

    gradient, changed = jax.grad(loss, has_aux=True)(variables["params"])
    assert all(np.any(g) for g in jax.tree.leaves(gradient["Dense_0"]))
    # Once, also where the forward pass is computed twice.
    np.testing.assert_allclose(jnp.sum(changed["codebook"]["vq"]["counts"]), 0.01 * 20, rtol=1e-5)


class Borrower(nn.Module):
    """A model that makes quantizer and transform where it uses them."""

    @nn.compact
    def __call__(self, z):
        codebook = FrozenCodebook(transform=LinearTransform())
        return nn.remat(VectorQuantizer)(num_codes=CODES, codebook=codebook, name="vq")(z).quantized


def test_a_transform_belongs_to_its_quantizer_wherever_it_is_made():
    variables = Borrower().init(KEY, gaussian(20, DIM))
    assert jax.tree.map(jnp.shape, variables) == {
        "params": {"vq": {"codebook_transform": {"linear": {"kernel": (DIM, DIM)}}}},
        "codebook": {"vq": {"codes": (CODES, DIM)}},
    }


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_inside_an_nnx_model(codebook):
    vq = VectorQuantizer(num_codes=CODES, codebook=replacing(codebook))
    z = gaussian(20, DIM)
    bridged = nnx.bridge.ToNNX(vq, rngs=nnx.Rngs(params=0, quantizer=1)).lazy_init(z)
    _, params, _ = nnx.split(bridged, nnx.Param, ...)
    assert list(params) == (["codes"] if codebook == "gradient" else [])

    @nnx.jit
    def step(model, z):
        def loss(model, z):
            out = model(z, train=True, mutable=["codebook"])
            return out.loss + jnp.sum(out.quantized**3)

        return nnx.grad(loss, argnums=1)(model, z)

    assert np.all(np.any(step(bridged, z), axis=1))
    np.testing.assert_allclose(jnp.sum(bridged.relative_usage[...]), CODES, rtol=1e-5)
    assert np.min(bridged.relative_usage[...]) < 1
    with pytest.raises(UserError, match="train=True updates"):
        bridged(z, train=True)
