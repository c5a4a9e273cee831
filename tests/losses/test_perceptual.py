"""The perceptual distance: its properties, and what cannot be loaded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax.errors import UserError
from vqjax.importing.lpips import load_lpips
from vqjax.losses.perceptual import PerceptualLoss
from vqjax.models import VGG16, AlexNet
from vqjax.models.lpips import LPIPS, perceptual_distance


class OneLayer(nn.Module):
    """A small network of one feature map."""

    @nn.compact
    def __call__(self, images):
        return (nn.relu(nn.Conv(4, (3, 3))(images)),)


@pytest.fixture(scope="module")
def small():
    module, x, y = LPIPS(OneLayer()), gaussian(2 * 8 * 8, 3).reshape(2, 8, 8, 3), jnp.zeros((2, 8, 8, 3))
    return module, module.init(jax.random.key(0), x, y), x, y


def test_equal_images_have_no_distance_and_the_order_does_not_matter(small):
    module, variables, x, y = small
    np.testing.assert_array_equal(module.apply(variables, x, x), 0)
    np.testing.assert_allclose(module.apply(variables, x, y), module.apply(variables, y, x), rtol=1e-6)
    assert (module.apply(variables, x, y) > 0).all()


def test_the_length_of_features_does_not_matter():
    x, y, weights = gaussian(12, 5).reshape(1, 3, 4, 5), gaussian(12, 5, seed=1).reshape(1, 3, 4, 5), [jnp.arange(5.0)]
    np.testing.assert_allclose(
        perceptual_distance([x], [y], weights), perceptual_distance([7 * x], [0.1 * y], weights), rtol=1e-5
    )


def test_the_gradient_is_finite_where_all_features_are_zero():
    """In the original it is NaN, and 0 * NaN ends a training."""
    x, y, weights = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)), [jnp.ones(3)]
    gradient = jax.grad(lambda y: jnp.sum(perceptual_distance([x], [y], weights)))(y)
    np.testing.assert_array_equal(gradient, 0)


def test_features_of_half_precision_are_compared_in_float32():
    module = LPIPS(VGG16(dtype="bfloat16"))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    distance, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((distance, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (VGG16(), (1, 15, 16, 3), r"3 channels and be at least 16 pixels .*, got shape \(1, 15, 16, 3\)"),
        (AlexNet(), (1, 32, 30, 3), r"3 channels and be at least 31 pixels"),
        (VGG16(), (1, 32, 32, 1), r"3 channels"),
    ],
)
def test_images_that_the_networks_did_not_see_are_refused(network, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))


def test_images_of_other_shapes_are_not_compared(small, as_users_run_it):
    module, variables, x, y = small
    with pytest.raises(UserError, match=r"`x` and `y` must have one shape, got \(2, 8, 8, 3\) and \(1, 8, 8, 3\)"):
        module.apply(variables, x, y[:1])


def test_something_else_is_no_lpips():
    with pytest.raises(UserError, match=r"must have the entries features.0.weight .* got \['weight'\]; pass the state"):
        load_lpips({"weight": np.ones(3)})
    arrays = {"features.0.weight": np.ones((64, 3, 3, 3)), "lin0.model.1.weight": np.ones((1, 64, 1, 1))}
    with pytest.raises(UserError, match=r"got missing \['features.0.bias', .* or of LPIPS 0.1 with"):
        load_lpips(arrays)


def test_heads_of_the_first_version_are_refused():
    """Bug: they were taken for those of 0.1. Sums of the first heads in the files of lpips 0.1.4."""
    network = {"features.0.weight": np.ones((64, 3, 3, 3), np.float32)}
    for total, message in ((3.641608, "got those of 0.0"), (6.925992, "got missing"), (2.565887, "got those of 0.0")):
        head = np.full((1, 64, 1, 1), total / 64, np.float32)
        with pytest.raises(UserError, match=message):
            load_lpips(network | {"lin0.model.1.weight": head})


def test_a_weight_of_zero_is_no_loss(small):
    with pytest.raises(UserError, match=r"weight must be above 0, got 0.0; leave the perceptual loss out"):
        PerceptualLoss(small[0], small[1], weight=0.0)
