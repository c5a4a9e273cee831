"""The Inception network and what is computed of its features, against pytorch-fid and torch-fidelity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from vqjax.data.whole_images import whole_images
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score
from vqjax.evaluation.manifold import kernel_distance, precision_and_recall
from vqjax.importing.inception import load_inception
from vqjax.training.compare import measure_images

inception = pytest.importorskip("pytorch_fid.inception")
fid_score = pytest.importorskip("pytorch_fid.fid_score")
clean_fid = pytest.importorskip("cleanfid.fid")
fidelity_kid, fidelity_prc, fidelity_isc = (
    pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("kid", "prc", "isc")
)


@pytest.fixture(scope="module")
def original():
    """The network of pytorch-fid, with weights that keep the size of features, and statistics that matter."""
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        random = {}

        def weights(*args, **kwargs):
            return random

        def scaled(network):
            for module in network.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(module.weight, 0.8, 1.2)
                    torch.nn.init.normal_(module.bias, std=0.1)
                    torch.nn.init.normal_(module.running_mean, std=0.1)
                    torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            return network

        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state, **options: scaled(self))
        patch.setattr(inception, "load_state_dict_from_url", weights)
        network = inception.fid_inception_v3()
    return network.eval()


def test_features_are_those_of_the_original(original):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)
    module, variables = load_inception({key: value.numpy() for key, value in original.state_dict().items()})
    features = jax.jit(module.apply)(variables, jnp.asarray(images))
    there = {}
    hooks = [
        original.Mixed_6d.branch1x1.register_forward_hook(lambda m, x, y: there.update(spatial=y)),
        original.avgpool.register_forward_hook(lambda m, x, y: there.update(pool=y)),
    ]
    with torch.no_grad():
        original(torch.tensor(images.transpose(0, 3, 1, 2)))
        logits = there["pool"].flatten(1) @ original.fc.weight.T
    for hook in hooks:
        hook.remove()
    spatial = there["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)
    for ours, theirs in (
        (features.pool, there["pool"].flatten(1)),
        (features.logits, logits),
        (features.spatial, spatial),
    ):
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(ours / scale, theirs.numpy() / scale, atol=1e-4)


def test_features_of_folders_are_those_of_pytorch_fid_and_clean_fid(original, monkeypatch, tmp_path):
    """From the files on, through both tools' own reading and scaling."""
    rng = np.random.default_rng(0)
    for number, size in enumerate([(70, 90), (70, 90), (400, 300), (32, 32)]):
        place = tmp_path / ("same" if number < 2 else "other") / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(place)
    monkeypatch.setattr(inception, "fid_inception_v3", lambda: original)
    resizing = inception.InceptionV3([3])
    plain = inception.InceptionV3([3], resize_input=False, normalize_input=False)
    files = sorted((tmp_path / "same").iterdir())
    of_pytorch_fid = fid_score.get_activations(files, resizing, 2, 2048, "cpu", num_workers=0)
    of_clean_fid = clean_fid.get_folder_features(
        str(tmp_path), lambda pixels: plain((pixels - 128) / 128)[0].flatten(1), 0, device="cpu", verbose=False
    )
    module, variables = load_inception({key: value.numpy() for key, value in original.state_dict().items()})
    for folder, scaling, theirs in (
        (tmp_path / "same", "pytorch-fid", of_pytorch_fid),
        (tmp_path, "clean-fid", of_clean_fid),
    ):
        network = FeatureNetwork(module, variables, "inception", "SHA-256 6726825d", scaling)
        ours = measure_images(network, whole_images(folder), batch_size=2).sample.features
        np.testing.assert_allclose(ours / theirs.max(), theirs / theirs.max(), atol=1e-4)


def test_distances_are_those_of_pytorch_fid_and_clean_fid(monkeypatch):
    # Both ask for an argument that SciPy no longer has.
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda x, disp, root=scipy.linalg.sqrtm: (root(x), 0.0))
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(2, 24, 24))
    x, y = (rng.normal(size=(400, 24)) @ matrix + shift for matrix, shift in zip(mix, (0.0, 0.3), strict=True))
    moments = x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
    for theirs in (fid_score.calculate_frechet_distance, clean_fid.frechet_distance):
        np.testing.assert_allclose(frechet_distance(Moments.of(x), Moments.of(y)), theirs(*moments), rtol=1e-6)


def test_the_kernel_distance_is_that_of_clean_fid():
    """With its draws, from NumPy's global generator: those of the second set come first."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 300, 16)) * [[[1.0]], [[0.8]]]
    np.random.seed(7)
    theirs = clean_fid.kernel_distance(y, x, num_subsets=5, max_subset_size=100)
    ours = kernel_distance(x, y, subsets=5, subset_size=100, seed=7)
    np.testing.assert_allclose(ours.mean, theirs, rtol=1e-6)


def test_the_size_is_that_of_the_original(original):
    """The number that tests/evaluation/test_fid.py has."""
    assert sum(parameter.numel() for parameter in original.parameters()) == 23_850_960


def test_kernel_distance_precision_recall_and_inception_score_are_those_of_torch_fidelity():
    """With its order of images and of draws."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 300, 16)) * [[[1.0]], [[0.8]]]
    kid = fidelity_kid.kid_features_to_metric(
        torch.tensor(x), torch.tensor(y), kid_subsets=5, kid_subset_size=100, verbose=False
    )
    theirs = list(kid.values())
    np.testing.assert_allclose(kernel_distance(x, y, subsets=5, subset_size=100), theirs, rtol=1e-6)
    prc = fidelity_prc.prc_features_to_metric(torch.tensor(y), torch.tensor(x), prc_neighborhood=3, verbose=False)
    ours = precision_and_recall(x, y, neighbors=3)
    np.testing.assert_allclose((ours.precision, ours.recall), list(prc.values())[:2], rtol=1e-6)
    isc = fidelity_isc.isc_features_to_metric(torch.tensor(x))
    np.testing.assert_allclose(inception_score(x), list(isc.values()), rtol=1e-6)
