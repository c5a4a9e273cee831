"""The residual network of features: shapes, what it refuses, and its batch norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.errors import UserError
from vqjax.models import ResNet
from vqjax.models.lpips import LPIPS

NETWORK = ResNet((4, 8, 12))


@pytest.fixture(scope="module")
def images():
    return gaussian(3 * 16 * 16, 3).reshape(3, 16, 16, 3)


@pytest.fixture(scope="module")
def variables(images):
    return jax.jit(NETWORK.init)(jax.random.key(0), images)


@pytest.mark.parametrize("size", [(8, 8), (17, 24), (31, 9)])
def test_levels_halve_height_and_width_and_leave_an_odd_row_out(size):
    images = jnp.zeros((2, *size, 3))
    features, _ = jax.eval_shape(NETWORK.init_with_output, jax.random.key(0), images)
    height, width = size
    expected = [(height // 2, width // 2, 4), (height // 4, width // 4, 8), (height // 8, width // 8, 12)]
    assert [x.shape[1:] for x in features] == expected


@pytest.mark.full
def test_the_features_of_an_image_do_not_depend_on_the_batch_unless_in_training(images, variables):
    apply = jax.jit(NETWORK.apply, static_argnames=("train", "mutable"))
    others = jnp.concatenate([images[:1], -images[1:]])
    for of_batch, of_others in zip(apply(variables, images), apply(variables, others), strict=True):
        np.testing.assert_array_equal(of_batch[0], of_others[0])
    (in_training, *_), updated = apply(variables, images, train=True, mutable="batch_stats")
    (other, *_), _ = apply(variables, others, train=True, mutable="batch_stats")
    assert jnp.any(in_training[0] != other[0])
    before, after = (jax.tree.leaves(x["batch_stats"]) for x in (variables, updated))
    assert all(jnp.any(x != y) for x, y in zip(before, after, strict=True))


@pytest.mark.full
def test_every_parameter_matters(images, variables):
    @jax.jit
    def total(params):
        features = NETWORK.apply(variables | {"params": params}, images)
        return sum(jnp.sum(jnp.square(x)) for x in features)

    gradients = jax.grad(total)(variables["params"])
    assert all(jnp.isfinite(x).all() and jnp.any(x != 0) for x in jax.tree.leaves(gradients))


def test_lpips_takes_it(images):
    module = LPIPS(NETWORK)
    distance, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images, images)
    assert distance.shape == (3,)
    assert variables["batch_stats"].keys() == {"network"}
    assert variables["params"]["weight_2"].shape == (12,)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (NETWORK, (1, 7, 16, 3), r"at least 8 pixels .*, got shape \(1, 7, 16, 3\)"),
        (NETWORK, (1, 16, 16, 1), r"3 channels .*, got shape \(1, 16, 16, 1\)"),
        (ResNet(()), (1, 16, 16, 3), r"channels must be one or more integers"),
        (ResNet((8, 0)), (1, 16, 16, 3), r"channels must be one or more integers"),
    ],
)
def test_what_it_cannot_take_is_refused(network, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
