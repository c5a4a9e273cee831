"""Protocols of rFID: what the command line refuses, and what is compared with what."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from helpers.networks import save_resnet
from helpers.runs import tiny_config
from vqjax import UserError
from vqjax.data import Splits
from vqjax.data.arrays import ArrayDataset
from vqjax.evaluation import ReconstructionFID, ReconstructionFVD, evaluate
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.statistics import load_statistics
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.protocols import Protocols
from vqjax.training.statistics import write_statistics


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network, which takes images at their own size."""
    return str(save_resnet(tmp_path_factory.mktemp("networks") / "small.safetensors"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.full
def test_training_images_are_measured_once_and_have_their_name(network, finished, images_file, tmp_path, capsys):
    data = (f"--config.data.{name}={value}" for name, value in dict(tiny_config(images_file).data).items())
    data = [flag for flag in data if flag.partition("=")[0] in _DATA]
    write_statistics(*data, features=network, output=tmp_path / "training.npz")
    options = {"features": network, "protocols": ("rfid_val", "rfid_train", "rfid_rotation_trick")}
    run = shutil.copytree(finished, tmp_path / "run")
    first = evaluate_workdir(run, **options, statistics=str(tmp_path / "training.npz"))
    shown = capsys.readouterr().err
    assert "measuring the 48 images of" in shown
    assert "far too large" not in shown
    numbers, name = first.metrics, f"rfd_{FeatureNetwork.from_file(network).name}"
    assert numbers[f"{name}_train"] == pytest.approx(numbers[f"{name}_to_training"], rel=1e-5)
    assert numbers[f"{name}_train"] != pytest.approx(numbers[f"{name}_val"], rel=1e-3)
    assert numbers[f"{name}_rotation_trick"] > 0
    assert "the 48 images of" in first.protocol[f"{name}_train"]
    assert "ris" not in numbers
    assert evaluate_workdir(run, **options).metrics[f"{name}_train"] == numbers[f"{name}_train"]
    assert "measuring" not in capsys.readouterr().err


_DATA = tuple(f"--config.data.{name}" for name in ("source", "name", "image_size"))


def test_statistics_of_other_features_are_refused(network, finished, tmp_path):
    write_statistics(features=network, output=tmp_path / "photos.npz", split="eval")
    context = load_statistics(tmp_path / "photos.npz").context
    assert context["images"] > 0
    assert "of SHA-256" in context["features"]
    with pytest.raises(UserError, match=r"photos.npz .* must be of the same features, got .* measure it again"):
        evaluate_workdir(finished, features=network, scaling="tf1", statistics=str(tmp_path / "photos.npz"))
    np.savez(tmp_path / "published.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match="must be of the same network, got 5 features there and 16 here"):
        evaluate_workdir(finished, features=network, statistics=str(tmp_path / "published.npz"))


def test_one_image_has_no_statistics(network, images_file, tmp_path):
    """Bug: a file without numbers was written."""
    np.savez(tmp_path / "one.npz", **{name: images[:1] for name, images in np.load(images_file).items()})
    data = ["source=arrays", f"name={tmp_path}/one.npz", "image_size=16"]
    with pytest.raises(UserError, match=r"at least 2 images, which a covariance takes, got 1 of one\.npz"):
        write_statistics(*(f"--config.data.{field}" for field in data), features=network, output=tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": ("rfid_test",)}, r"--protocols must be of rfid_val, rfid_train.*got 'rfid_test'"),
        ({"protocols": ("rfid_train",)}, "--features must name a network if --protocols is given"),
        ({"scaling": "clean-fid"}, "--features must name a network if --scaling is given"),
        ({"statistics": "x.npz"}, "--features must name a network if --statistics is given"),
        ({"protocols": ("rfid_train",), "split": "all"}, "--split must be eval with rfid_train"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        Protocols(None, **{"split": "eval"} | options)


class Clips:
    """Examples with a video in the place of an image."""

    name = "clips"
    class_names = None

    def __init__(self, number):
        self.video = np.random.default_rng(number).integers(0, 256, (number, 10, 8, 8, 3), np.uint8)

    def __len__(self):
        return len(self.video)

    def __getitem__(self, index):
        return {"video": self.video[index]}


@pytest.fixture
def clips():
    return Splits(Clips(24), Clips(12))


@pytest.mark.parametrize(("split", "last", "count"), [("eval", "val", 12), ("train", "of_train_clips", 24)])
def test_clips_have_a_distance_of_their_own(network, clips, split, last, count):
    (metric,) = Protocols(network, split=split).metrics(clips, ConfigDict(), batch_size=4, mesh=None)
    assert isinstance(metric, ReconstructionFVD)
    (name,) = metric.protocol
    assert name == f"rfvd_{FeatureNetwork.from_file(network).name}_{last}"
    assert f"{count} clips of 10 frames; " in metric.protocol[name]
    batch = {"video": getattr(clips, split).video, "valid": np.ones(count, bool)}
    result = evaluate(lambda batch: {"reconstruction": batch["video"] / 127.5 - 1}, [batch], [metric])
    assert result.metrics == {name: pytest.approx(0, abs=1e-6)}


def test_few_clips_are_noted(network, clips, capsys):
    Protocols(network, split="eval").note_few(clips.eval)
    shown = capsys.readouterr().err
    assert "published for 2,048 clips, a covariance of 32 features takes 33, and there are 12; " in shown
    Protocols(None, split="eval").note_few(clips.eval)
    assert capsys.readouterr().err == ""


def test_what_is_not_measured_of_clips_is_refused(network, clips):
    several = Protocols(network, split="eval", protocols=("rfid_val", "rfid_train"))
    with pytest.raises(UserError, match="--protocols and --statistics must be left out for clips, got rfid_val, rfid_"):
        several.metrics(clips, ConfigDict(), batch_size=4, mesh=None)


@pytest.mark.full
def test_images_have_no_distance_of_clips(network):
    images = ArrayDataset("images", np.zeros((2, 8, 8, 3), np.uint8), image_size=8)
    (metric,) = Protocols(network, split="eval").metrics(Splits(images, images), ConfigDict(), batch_size=4, mesh=None)
    assert isinstance(metric, ReconstructionFID)
