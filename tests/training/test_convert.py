"""Weights of feature networks, from files of PyTorch to one that the trainer reads."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers.networks import alexnet
from helpers.torch_files import write_archive
from vqjax import UserError
from vqjax.importing.features import load_features
from vqjax.importing.lpips import load_lpips
from vqjax.training.convert import convert_features


@pytest.fixture(scope="module")
def published():
    """State dicts as torchvision and the package lpips publish them."""
    network, rng = alexnet(), np.random.default_rng(1)
    layers = enumerate((0, 3, 6, 8, 10))
    sizes = [(i, len(network[f"features.{number}.bias"])) for i, number in layers]
    heads = {f"lin{i}.model.1.weight": rng.uniform(size=(1, size, 1, 1)) for i, size in sizes}
    return network | {"classifier.1.weight": rng.normal(size=(4, 4))}, heads


def test_network_and_heads_become_one_file(tmp_path, published, capsys):
    network, heads = published
    files = [write_archive(tmp_path / f"{i}.pth", arrays) for i, arrays in enumerate(published)]
    output = tmp_path / "new" / "lpips.safetensors"
    convert_features(files[0], heads=str(files[1]), output=output)
    assert sorted(load_file(output)) == sorted((network.keys() | heads.keys()) - {"classifier.1.weight"})
    jax.tree.map(np.testing.assert_array_equal, load_lpips(output)[1], load_lpips(network | heads)[1])
    assert "LPIPS over AlexNet" in capsys.readouterr().out


def test_a_network_alone_serves_discriminators(tmp_path, published):
    output = tmp_path / "alexnet.safetensors"
    convert_features(write_archive(tmp_path / "alexnet.pth", published[0]), output=output)
    jax.tree.map(np.testing.assert_array_equal, load_features(output)[1], load_features(published[0])[1])


def test_what_cannot_be_loaded_is_not_written(tmp_path, published):
    network, heads = published
    del heads["lin1.model.1.weight"]
    files = [write_archive(tmp_path / f"{i}.pth", arrays) for i, arrays in enumerate((network, heads))]
    output = tmp_path / "lpips.safetensors"
    with pytest.raises(UserError, match=r"missing \['lin1.model.1.weight'\]"):
        convert_features(files[0], heads=str(files[1]), output=output)
    with pytest.raises(UserError, match=r"^--output must end in .safetensors, got '.*lpips.pth'; "):
        convert_features(files[0], output=tmp_path / "lpips.pth")
    assert not output.exists()
