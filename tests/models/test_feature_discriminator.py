"""Heads over a frozen network: against NumPy, over maps and tokens, and what is frozen stays so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError
from vqjax.models.feature_discriminator import FROZEN, FeatureDiscriminator, FrozenNetwork


class Tokens(nn.Module):
    """Patches of four pixels as a sequence, in one layer."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(3, (4, 4), 4)(images)
        return (x.reshape(len(x), -1, 3),)


class Maps(nn.Module):
    """Feature maps of two sizes."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3))(images))
        return x, nn.Conv(6, (4, 4), 4)(x)


class OneMap(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Conv(4, (3, 3))(images)


IMAGES = gaussian(4 * 16 * 16, 3).reshape(4, 16, 16, 3)


def make(network, **options):
    frozen = FrozenNetwork(network, network.init(jax.random.key(0), IMAGES))
    discriminator = FeatureDiscriminator(frozen, **options)
    return discriminator, discriminator.init(jax.random.key(1), IMAGES, train=False)


def judge(discriminator, variables, images=IMAGES, train=True):
    return discriminator.apply(variables, images, train=train, mutable=["batch_stats"])


@pytest.mark.full
def test_a_head_over_tokens_is_that_of_stylegan_t():
    """Two linear layers and nine neighbors in a circle, spectral norm, norms over groups of two, in float64."""
    discriminator, variables = make(Tokens(), group_size=2)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["head_0"])
    us = variables["batch_stats"]["head_0"]
    (x,) = (np.asarray(x, np.float64) for x in Tokens().apply(variables[FROZEN]["network"], IMAGES))

    def normalized(name):
        kernel = head[name]["kernel"]
        matrix, u = kernel.reshape(-1, kernel.shape[-1]), np.asarray(us[f"{name}_norm"][f"{name}/kernel/u"], np.float64)
        v = u @ matrix.T
        v /= np.linalg.norm(v)
        u = v @ matrix / np.linalg.norm(v @ matrix)
        return kernel / (v @ matrix @ u.T).item()

    def block(x, name, size):
        kernel = normalized(name)
        shifted = [np.roll(x, size // 2 - tap, axis=1) for tap in range(size)]
        x = sum(part @ tap for part, tap in zip(shifted, kernel, strict=True)) + head[name]["bias"]
        parts = x.reshape(2, -1, 3)
        parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
        x = parts.reshape(x.shape)
        return np.where(x > 0, x, 0.2 * x)

    x = block(x, "linear", 1)
    x = (x + block(x, "neighbors", 9)) / np.sqrt(2)
    expected = (x @ normalized("logit")[0] + head["logit"]["bias"])[..., 0]
    np.testing.assert_allclose(judge(discriminator, variables)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_finer_layers_have_as_many_logits_as_the_coarsest():
    discriminator, variables = make(Maps())
    logits, _ = judge(discriminator, variables)
    assert logits.shape == (4, 2 * 4 * 4)
    assert logits.dtype == jnp.float32


@pytest.mark.full
def test_gradients_reach_the_images_through_the_network():
    discriminator, variables = make(Maps())
    gradient = jax.grad(lambda images: judge(discriminator, variables, images)[0].sum())(IMAGES)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.full
def test_the_spectral_norm_settles_at_the_largest_singular_value():
    discriminator, variables = make(Maps())
    step = jax.jit(lambda variables: judge(discriminator, variables)[1])
    for _ in range(50):
        variables = variables | step(variables)
    for number in range(2):
        for name in ("linear", "neighbors", "logit"):
            kernel = variables["params"][f"head_{number}"][name]["kernel"]
            sigma = variables["batch_stats"][f"head_{number}"][f"{name}_norm"][f"{name}/kernel/sigma"]
            largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
            np.testing.assert_allclose(sigma, largest, rtol=1e-2)


@pytest.mark.full
def test_groups_are_judged_apart_and_a_batch_that_does_not_divide_has_larger_ones():
    discriminator, variables = make(Maps(), group_size=2)
    together, apart = judge(discriminator, variables)[0], judge(discriminator, variables, IMAGES[:2])[0]
    np.testing.assert_allclose(together[:2], apart, rtol=1e-4, atol=1e-5)
    assert judge(discriminator, variables, IMAGES[:3])[0].shape == (3, 32)


def test_a_network_that_returns_no_layers_is_refused():
    with pytest.raises(
        UserError, match=r"network must return a tuple of .*got the shapes \(4, 16, 16, 4\); return the"
    ):
        make(OneMap())


@pytest.mark.parametrize("options", [{"group_size": 0}, {"dtype": "int32"}])
def test_values_out_of_range_are_refused(options, as_users_run_it):
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be "):
        make(Maps(), **options)
