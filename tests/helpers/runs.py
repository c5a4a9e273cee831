"""A run small enough to train many times in the tests."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.training.config import base_config
from vqjax.training.loop import train


@pytest.fixture(scope="session")
def images_file(tmp_path_factory) -> Path:
    """48 training and 20 held-out images, 16 x 16, each of two random colors."""
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 48), ("test", 20)):
        colors = random.integers(0, 256, (count, 1, 2, 3), dtype=np.uint8)
        splits[split] = colors.repeat(8, axis=2).repeat(16, axis=1)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **splits)
    return path


def tiny_config(images_file: Path) -> ConfigDict:
    config = base_config()
    config.num_steps, config.batch_size = 12, 8
    config.log_every, config.eval_every, config.checkpoint_every = 4, 6, 5
    config.tensorboard = False
    config.data = {"source": "arrays", "name": str(images_file), "image_size": 16, "flip": True, "crop_padding": 2}
    config.model = {"name": "sonnet", "width": 8, "latent_dim": 4, "num_residual_blocks": 1}
    codebook = {"name": "ema", "dead_code_threshold": 0.9, "replace": {"below": 0.9}}
    config.quantizer = quantizers.defaults("vq", num_codes=16, codebook=codebook)
    config.optimizer.learning_rate = 1e-3
    return config


@pytest.fixture
def config(images_file: Path) -> ConfigDict:
    return tiny_config(images_file)


@pytest.fixture(scope="session")
def finished(images_file: Path, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run of that config on one device."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(images_file), workdir, devices=jax.devices()[:1])
    return workdir
