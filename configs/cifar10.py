"""CIFAR-10: the model of a published study of rotation (docs/reproduction.md), and Sonnet's VQ-VAE as `:sonnet`.

Data:      CIFAR-10 as tensorflow-datasets prepares it (array_record), found through TFDS_DATA_DIR.
Arguments: preset (small, medium, large, xlarge: 256, 512, 1024 or 2048 codes; large by default), codes, beta
           (commitment weight), estimator, epochs, and sonnet, which has 512 codes; for example
           configs/cifar10.py:preset=small,beta=0.5,epochs=100

Command:   python train.py --config=configs/cifar10.py:sonnet --workdir=runs/sonnet
Time:      10 minutes on two cores of a server CPU that are otherwise idle
Result:    MSE/variance 0.0564 and perplexity 331.5 over batches of 32 on the test split (docs/results.md)

Command:   python train.py --config=configs/cifar10.py --workdir=runs/cifar10
Time:      6 to 11 hours on two CPU cores, by the speed of its steps (115 images/s, on slower cores 61); not yet run to
           its end
"""

from typing import Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.errors import UserError
from vqjax.training.config import base_config

PRESETS = {"small": 256, "medium": 512, "large": 1024, "xlarge": 2048}


def get_config(
    *,
    sonnet: bool = False,
    preset: Literal["small", "medium", "large", "xlarge"] | None = None,
    codes: int | None = None,
    beta: float = 0.25,
    estimator: str | None = None,
    epochs: int | None = None,
) -> ConfigDict:
    if sonnet and preset is not None:
        raise UserError("preset must be left out with sonnet, which has 512 codes; pass codes=N for another number.")
    config = base_config()
    config.data = dict(source="tfds", name="cifar10", image_size=32)
    if sonnet:
        # The settings of Sonnet's published notebook.
        config.batch_size = 32
        config.num_steps = 10_000
        config.model = dict(name="sonnet", width=128, latent_dim=64)
        config.quantizer = quantizers.defaults("vq", num_codes=512, estimator="straight_through")
        config.loss = dict(name="mse", divide_by_variance=True)
        config.optimizer = dict(name="adam", learning_rate=3e-4)
    else:
        # 50 epochs without augmentation, as the published code trains.
        config.batch_size = 128
        config.num_steps = 50 * (50_000 // config.batch_size)
        config.model = dict(name="residual", width=256)
        config.quantizer = quantizers.defaults("vq", num_codes=PRESETS[preset or "large"], estimator="rotation")
        config.loss = dict(name="mse")
        config.optimizer = dict(name="adam", learning_rate=2e-4)

    config.quantizer.commitment_weight = beta
    if codes is not None:
        config.quantizer.num_codes = codes
    if estimator is not None:
        config.quantizer.estimator = estimator
    if epochs is not None:
        config.num_steps = epochs * (50_000 // config.batch_size)
    return config
