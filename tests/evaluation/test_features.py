"""Networks of an evaluation: how a file is recognized, found and refused, and how images come to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.networks import alexnet, dinov2, save_resnet
from vqjax import UserError
from vqjax.evaluation.features import KNOWN, FeatureNetwork
from vqjax.evaluation.fid import Measures
from vqjax.runtime.files import file_checksum
from vqjax.training.loop import train

IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file as in studies/features."""
    return save_resnet(tmp_path_factory.mktemp("networks") / "small.safetensors")


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory):
    """A file as torchvision has it, with the classifier, and a name that says nothing."""
    arrays = {key: value.astype(np.float32) for key, value in alexnet().items()}
    path = tmp_path_factory.mktemp("networks") / "weights.safetensors"
    save_file({"classifier.6.bias": np.zeros(1000, np.float32)} | arrays, path)
    return path


@pytest.mark.full
def test_a_file_is_recognized_by_its_entries(resnet, torchvision):
    small, large = FeatureNetwork.from_file(resnet), FeatureNetwork.from_file(torchvision, "clean-fid")
    checksums = [file_checksum(file)[:8] for file in (resnet, torchvision)]
    assert (small.name, small.size, small.dim) == (f"resnet_{checksums[0]}", None, 16)
    assert (large.name, large.size, large.dim) == (f"alexnet_{checksums[1]}", 224, 256)
    assert file_checksum(torchvision)[:8] in large.how
    assert Measures(small, "r", "val").name("fid") == f"rfd_resnet_{checksums[0]}_val"
    assert Measures(large, "r", "val").name("kid") == f"rkd_alexnet_{checksums[1]}_clean_val"
    assert Measures(large).name("recall") == f"recall_alexnet_{checksums[1]}_clean"


def test_dinov2_is_scaled_as_published_for_it(tmp_path):
    file = tmp_path / "dinov2_vits14_reg4_pretrain.safetensors"
    save_file(dinov2(registers=4), file)
    network = FeatureNetwork.from_file(file)
    assert (network.size, network.dim, network.scaling) == (224, 64, "dgm-eval")
    assert Measures(network).name("fid") == f"fd_dinov2_dim_64_reg_{file_checksum(file)[:8]}"
    assert {f"dinov2_{size}{kind}" for size in ("vits14", "vitb14", "vitl14") for kind in ("", "_reg")} < KNOWN.keys()


def test_numbers_that_differ_in_network_scaling_or_reference_have_different_names(resnet, torchvision):
    networks = [FeatureNetwork.from_file(file, scaling) for file in (resnet, torchvision) for scaling in ("tf1", None)]
    measures = [
        Measures(network, prefix, reference)
        for network in networks
        for prefix in ("r", "")
        for reference in ("val", "train", "rotation_trick")
    ]
    for measure in ("fid", "kid"):
        assert len({of.name(measure) for of in measures}) == len(measures)


@pytest.mark.parametrize("number", [1, 31, 33, 70])
def test_images_in_parts_have_the_features_of_all_at_once(number, resnet):
    network = FeatureNetwork.from_file(resnet)
    images = jnp.asarray(IMAGES[:number])
    features = jax.jit(FeatureNetwork.__call__)(network, images).pool
    expected = network.module.apply(network.variables, images / 127.5 - 1)[-1].mean(axis=(1, 2))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_published_file_is_found_by_its_name_and_known_by_its_checksum(torchvision, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/all")
    with pytest.raises(UserError, match=r"must be in /of/all/torch/hub/checkpoints"):
        FeatureNetwork.from_file("alexnet")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79.pth must be in .*hub/checkpoints.*from torchvision"):
        FeatureNetwork.from_file("alexnet")
    stored = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(torchvision.read_bytes())
    with pytest.raises(UserError, match=r"must have a SHA-256 that begins with 7be5be79, got .*cut or changed"):
        FeatureNetwork.from_file("alexnet")
    checksum = file_checksum(torchvision)[:8]
    file = f"alexnet-{checksum}.safetensors"
    monkeypatch.setitem(KNOWN, "alexnet", KNOWN["alexnet"]._replace(files=("missing.pth", file)))
    stored.rename(stored.with_name(file))
    found = FeatureNetwork.from_file("alexnet")
    assert (found.name, found.weights) == ("alexnet", f"SHA-256 {checksum}")


def test_what_is_no_network_is_refused_in_one_line(resnet, tmp_path):
    with pytest.raises(UserError, match=r"features must be a file or one of inception.*got 'incepton'. .*inception"):
        FeatureNetwork.from_file("incepton")
    with pytest.raises(UserError, match=r"scaling must be one of .*'tf1'.*got 'tf2'"):
        FeatureNetwork.from_file(resnet, "tf2")
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"must hold the weights of .*got entries \['encoder.weight'\]"):
        FeatureNetwork.from_file(tmp_path / "other.safetensors")


def test_gray_images_are_seen_as_tools_read_them(resnet):
    network = FeatureNetwork.from_file(resnet)
    gray = jnp.asarray(IMAGES[:3, ..., :1])
    np.testing.assert_array_equal(network(gray).pool, network(jnp.tile(gray, 3)).pool)


@pytest.mark.full
def test_the_classifier_of_a_run_is_a_feature_network(tmp_path, config):
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8) for name in ("train", "test")}
    arrays |= {f"{name}_labels": random.integers(0, 3, 24) for name in ("train", "test")}
    np.savez(tmp_path / "images.npz", **arrays)
    config.data = {"source": "arrays", "name": str(tmp_path / "images.npz"), "image_size": 16}
    config.model, config.quantizer = {"name": "resnet18", "width": 4, "num_classes": 3}, {}
    config.task, config.loss = {"name": "classification"}, {"name": "cross_entropy"}
    config.num_steps = 2
    train(config, tmp_path / "run", devices=jax.devices()[:1])
    network = FeatureNetwork.from_file(tmp_path / "run")
    features = network(jnp.asarray(arrays["test"][:5]))
    assert features.pool.shape == (5, network.dim) == (5, 32)
    assert features.logits.shape == (5, 3)
    assert network.name.startswith("resnet18_")
    assert network.size == 16
    with pytest.raises(UserError, match=r"images must be in color or gray for resnet18_.*, got 4 channels"):
        network(jnp.zeros((2, 16, 16, 4), jnp.uint8))
    # Bug: other shapes were squashed, or ended in a traceback.
    config.data = {"source": "arrays", "name": str(tmp_path / "images.npz"), "image_size": (16, 24)}
    config.num_steps = 1
    train(config, tmp_path / "wide", devices=jax.devices()[:1])
    with pytest.raises(
        UserError, match=r"must be a run of a classifier of square images in color, got .*image_size=\[16, 24\]"
    ):
        FeatureNetwork.from_file(tmp_path / "wide")
