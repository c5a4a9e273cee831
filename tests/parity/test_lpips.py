"""LPIPS against the package lpips, with its heads and random convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from vqjax.importing.lpips import load_lpips

lpips = pytest.importorskip("lpips")
torchvision = pytest.importorskip("torchvision")


def original(net):
    torch.manual_seed(0)
    # Modules that ask for weights to download are not built.
    return lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()


def images(seed, size):
    return np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def channels_first(array):
    return torch.tensor(array.transpose(0, 3, 1, 2))


def channels_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def arrays_of(module):
    return {key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("size", [32, 65])
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_distance_and_gradient_are_those_of_the_original(net, size):
    """The gradient is compared with that in float64: a ReLU near zero may decide otherwise in either library."""
    x, y = images(0, size), images(1, size)
    distances, gradients = {}, {}
    for dtype in (torch.float32, torch.float64):
        there = channels_first(y).to(dtype).requires_grad_()
        distance = original(net).to(dtype)(channels_first(x).to(dtype), there)
        distance.sum().backward()
        distances[dtype], gradients[dtype] = distance.detach().numpy().reshape(-1), channels_last(there.grad)
    module, variables = load_lpips(arrays_of(original(net)))
    distance, gradient = jax.jit(
        lambda variables, x, y: (
            module.apply(variables, x, y),
            jax.grad(lambda y: jnp.sum(module.apply(variables, x, y)))(y),
        )
    )(variables, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(distance, distances[torch.float32], rtol=1e-4)
    exact = gradients[torch.float64]
    theirs = np.linalg.norm(gradients[torch.float32] - exact)
    assert np.linalg.norm(gradient - exact) < max(1e-4 * np.linalg.norm(exact), 1.5 * theirs)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_the_forms_in_which_it_is_found_are_one(net, tmp_path):
    theirs = original(net)
    arrays = arrays_of(theirs)
    module, variables = load_lpips(arrays)
    trunk = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}[net](weights=None)
    trunk.features.load_state_dict(
        {".".join(key.split(".")[2:]): torch.tensor(value) for key, value in arrays.items() if key.startswith("net.")}
    )
    heads = {key: value for key, value in arrays.items() if key.startswith("lin") and not key.startswith("lins")}
    save_file({f"loss.perceptual_loss.{key}": value for key, value in arrays.items()}, tmp_path / "all.safetensors")
    for form in (arrays_of(trunk) | heads, tmp_path / "all.safetensors"):
        other, of_other = load_lpips(form)
        assert other == module
        jax.tree.map(np.testing.assert_array_equal, of_other, variables)
