"""LPIPS as a metric of an evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import UserError
from vqjax.evaluation import evaluate
from vqjax.evaluation.lpips import PerceptualDistance
from vqjax.models.features import VGG16, AlexNet
from vqjax.models.lpips import LPIPS

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def brighter(batch):
    return {"reconstruction": batch["image"] / 127.5 - 0.5}


@pytest.mark.full
@pytest.mark.parametrize(
    ("network", "name"), [pytest.param(VGG16(), "lpips_vgg", marks=pytest.mark.full), (AlexNet(), "lpips_alex")]
)
def test_it_is_the_mean_distance_of_clipped_reconstructions(network, name):
    module = LPIPS(network)
    image = jnp.asarray(IMAGES) / 127.5 - 1
    variables = jax.jit(module.init)(jax.random.key(0), image, image)
    batch = {"image": IMAGES, "valid": np.array([True, True, False])}
    metric = PerceptualDistance(module, variables, "none")
    result = evaluate(brighter, [batch], [metric], intervals=True)
    expected = module.apply(variables, image, jnp.clip(image + 0.5, -1, 1))[:2].mean()
    assert result.metrics[name] == pytest.approx(float(expected), rel=1e-4)
    assert set(result.metrics) == set(result.protocol) == set(result.intervals) == {name}


def test_two_over_one_network_are_refused():
    """Bug: the second took the name of the first."""
    metrics = [PerceptualDistance(LPIPS(AlexNet()), {}, weights) for weights in ("these", "those")]
    with pytest.raises(UserError, match="got lpips_alex of 2; leave one out"):
        evaluate(brighter, [{"image": IMAGES, "valid": np.ones(3, bool)}], metrics)


def test_images_that_are_too_small_have_none():
    metric = PerceptualDistance(LPIPS(AlexNet()), {}, "none")
    batch = {"image": IMAGES[:, :30], "valid": np.ones(3, bool)}
    assert evaluate(brighter, [batch], [metric], intervals=True).metrics == {"lpips_alex": None}
