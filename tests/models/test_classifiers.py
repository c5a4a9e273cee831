"""Classifiers with quantizers at their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import FSQ, VectorQuantizer
from vqjax.errors import UserError
from vqjax.models.classifiers import ClassifyingAlexNet, ResNet18, ViT

SMALL = {
    "resnet18": ResNet18(width=4),
    "resnet18 of ImageNet": ResNet18(width=4, stem="imagenet"),
    "alexnet": ClassifyingAlexNet(hidden=8),
    "vit": ViT(dim=8, depth=2, heads=1, mlp_dim=8),
}


@pytest.mark.parametrize(
    ("network", "size", "parameters"),
    [
        # torchvision's resnet18 and alexnet, and the usual CIFAR form of the first.
        (ResNet18(num_classes=1000, stem="imagenet"), 224, 11_689_512),
        (ClassifyingAlexNet(num_classes=1000, stem="imagenet"), 224, 61_100_840),
        (ResNet18(), 32, 11_173_962),
    ],
)
def test_parameters_are_as_many_as_in_the_published_networks(network, size, parameters):
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


@pytest.mark.parametrize("name", SMALL)
def test_every_place_takes_a_quantizer_and_its_codes_go_on(name):
    images = gaussian(2 * 64 * 64, 3).reshape(2, 64, 64, 3)
    plain = SMALL[name]
    quantizers = {place: VectorQuantizer(num_codes=4) for place in plain.places}
    network = plain.clone(quantizers=quantizers)

    @jax.eval_shape
    def shapes():
        output, _ = network.init_with_output(jax.random.key(0), images)
        codes = {place: of_place.quantized for place, of_place in output.quantizers.items()}
        return output.logits, output.features, output.latents, codes

    logits, features, latents, codes = shapes
    assert latents == codes
    assert set(latents) == set(plain.places)
    assert (logits.shape, features.shape[0]) == ((2, 10), 2)


@pytest.mark.full
def test_a_place_without_a_quantizer_changes_nothing_and_one_with_passes_codes():
    images = gaussian(2 * 32 * 32, 3).reshape(2, 32, 32, 3)
    plain = SMALL["vit"]
    quantized = plain.clone(quantizers={"block_2": FSQ(levels=(3,) * 8)})
    variables = plain.init(jax.random.key(0), images)
    output = quantized.apply(variables, images, train=False)
    assert set(jnp.unique(output.quantizers["block_2"].quantized).tolist()) <= {-1.0, 0.0, 1.0}
    same = plain.apply(variables, images, train=False)
    assert same.quantizers == {}
    assert jnp.any(same.logits != output.logits)


@pytest.mark.full
def test_the_mask_leaves_images_out_of_the_losses():
    images = gaussian(2 * 32 * 32, 3).reshape(2, 32, 32, 3)
    network = SMALL["vit"].clone(quantizers={"block_1": VectorQuantizer(num_codes=4)})
    variables = network.init(jax.random.key(0), images)
    masked = network.apply(variables, images, jnp.array([True, False]), train=False)
    alone = network.apply(variables, images[:1], train=False)
    of_masked, of_alone = masked.quantizers["block_1"], alone.quantizers["block_1"]
    np.testing.assert_allclose(of_masked.loss, of_alone.loss, rtol=1e-5)
    assert (of_masked.indices[1] == -1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet18(quantizers={"stage_5": FSQ((3,))}), "places of ResNet18, got 'stage_5'; did you mean"),
        (lambda: ViT(depth=2, quantizers={"block_3": FSQ((3,))}), "places of ViT, got 'block_3'"),
        (lambda: ResNet18(num_classes=1), r"num_classes must be an integer in \[2, "),
        (lambda: ResNet18(stem="mnist"), "stem must be one of 'cifar', 'imagenet', got 'mnist'"),
        (lambda: ClassifyingAlexNet(dropout=1.0), r"dropout must be in \[0, 1\), or None, got 1.0"),
        (lambda: ResNet18(dtype="int8"), "dtype must be a floating-point dtype"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_call_has_to_say_whether_it_trains():
    images = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(UserError, match="train must be True or False for ViT, got None"):
        SMALL["vit"].apply({}, images)
