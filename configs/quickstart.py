"""Bundled photographs, no download: what a bare `python train.py` runs.

Arguments: quantizer, any recipe of vqjax/quantizers/recipes.py, at about 8 bits per latent vector; for example
           configs/quickstart.py:quantizer=fsq
Data:      64 x 64 crops of six photographs to train on and of two others to evaluate on, all from scikit-image.
Command:   python train.py
Time:      2 to 3 minutes on two cores of a server CPU that are otherwise idle
Result:    held-out PSNR 26.08 dB, 9.26 dB above each image's mean color; 233 of 256 codes in use (docs/results.md)
"""

from typing import Literal

from ml_collections import ConfigDict

from vqjax.quantizers.recipes import RECIPES
from vqjax.training.config import base_config


def get_config(*, quantizer: Literal[*RECIPES] = "vq") -> ConfigDict:
    config = base_config()
    config.num_steps = 2000
    config.batch_size = 16
    config.log_every = 50
    config.eval_every = 500
    config.checkpoint_every = 500

    config.data = dict(source="photos", image_size=64, flip=True)
    config.model = dict(name="residual", width=64)
    config.quantizer = RECIPES[quantizer]
    config.loss = dict(name="mse", divide_by_variance=True)
    config.optimizer = dict(name="adam", learning_rate=1e-3, schedule="cosine")

    if quantizer == "binary_mapper":
        config.model.latent_dim = 8  # one logit per bit
    if quantizer == "multi_scale_vq":
        config.quantizer.scales = (1, 2, 4, 8, 16)  # the last is the side of the latent grid
    return config
