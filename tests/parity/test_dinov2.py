"""DINOv2 against transformers, and its interpolation of positions against PyTorch's, as the publishers call it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vqjax.importing.dinov2 import load_dinov2

transformers = pytest.importorskip("transformers")

NETWORKS = {
    0: (transformers.Dinov2Config, transformers.Dinov2Model),
    4: (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
}


def original(registers, image_size):
    """A small network with weights that all matter."""
    config, network = NETWORKS[registers]
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    network = network(config(**sizes, image_size=image_size))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def state_dict(network):
    return {key: value.numpy() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("registers", NETWORKS)
def test_features_are_those_of_the_original(registers, tmp_path):
    """From the module, and from the file that it writes, where entries have other names."""
    network = original(registers, 224)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        theirs = network((torch.tensor(images.transpose(0, 3, 1, 2)) / 2 + 0.5 - mean) / deviation).pooler_output
    network.save_pretrained(tmp_path)
    for arrays in (state_dict(network), tmp_path / "model.safetensors"):
        module, variables = load_dinov2(arrays)
        ours = jax.jit(module.apply)(variables, jnp.asarray(images))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("registers", NETWORKS)
def test_positions_are_interpolated_as_the_publishers_do(registers):
    """To 16 x 16 of 37 x 37: without antialiasing by a scale of 16.1 / 37, or with it for registers."""
    arrays = state_dict(original(registers, 518))
    embeddings = torch.tensor(arrays["embeddings.position_embeddings"])
    grid = embeddings[:, 1:].reshape(1, 37, 37, 128).permute(0, 3, 1, 2)
    how = {"size": (16, 16), "antialias": True} if registers else {"scale_factor": (16.1 / 37, 16.1 / 37)}
    theirs = torch.nn.functional.interpolate(grid, mode="bicubic", **how).permute(0, 2, 3, 1).reshape(1, 256, 128)
    ours = load_dinov2(arrays)[1]["params"]["pos_embed"]
    np.testing.assert_allclose(ours[:, 1:], theirs.numpy(), atol=1e-4)
    np.testing.assert_array_equal(ours[:, :1], embeddings[:, :1].numpy())
