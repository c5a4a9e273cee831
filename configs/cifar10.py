"""CIFAR-10: the CIFAR-10 study's model, and sonnet's VQ-VAE as `:sonnet`.

Data:      CIFAR-10 as tensorflow-datasets prepares it (array_record), found through TFDS_DATA_DIR.
Arguments: codes, beta (commitment weight), estimator, preset (small, medium, large, xlarge: 256, 512, 1024 or 2048
           codes), epochs, and sonnet; for example configs/cifar10.py:preset=small,beta=0.5,epochs=100

Command:   python train.py --config=configs/cifar10.py:sonnet --workdir=runs/sonnet
Time:      10 minutes on two cores of a server CPU that are otherwise idle
Result:    MSE/variance 0.0564 and perplexity 331.5 over batches of 32 on the test split (docs/results.md)

Command:   python train.py --config=configs/cifar10.py --workdir=runs/cifar10
Time:      about 6 hours on two CPU cores, by the speed of its first steps (115 images/s); not yet run to its end
"""

from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.training.config import default_config, nearest_name, parse_variant

PRESETS = {"small": 256, "medium": 512, "large": 1024, "xlarge": 2048}


def get_config(argument: str = "") -> ConfigDict:
    variant = parse_variant(argument, sonnet=False, codes=0, beta=0.25, estimator="", preset="large", epochs=0)
    if variant.preset not in PRESETS:
        raise UserError(f"config argument preset={variant.preset!r} is unknown{nearest_name(variant.preset, PRESETS)}")
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.image_size = 32
    if variant.sonnet:
        _sonnet(config)
    else:
        _study(config, PRESETS[variant.preset])
    config.quantizer.commitment_weight = variant.beta
    if variant.codes:
        config.quantizer.num_codes = variant.codes
    if variant.estimator:
        config.quantizer.estimator = variant.estimator
    if variant.epochs:
        config.num_steps = variant.epochs * (50_000 // config.batch_size)
    return config


def _study(config: ConfigDict, num_codes: int) -> None:
    """50 epochs with Adam, batches of 128, no augmentation, as the study trains."""
    config.batch_size = 128
    config.num_steps = 50 * (50_000 // config.batch_size)
    config.quantizer.num_codes = num_codes
    config.optimizer.learning_rate = 2e-4


def _sonnet(config: ConfigDict) -> None:
    """The settings of sonnet's published notebook: straight-through, batches of 32, 10,000 steps."""
    config.batch_size = 32
    config.num_steps = 10_000
    config.model.name = "sonnet"
    config.model.width = 128
    config.model.code_dim = 64
    config.quantizer.num_codes = 512
    config.quantizer.estimator = "straight_through"
    config.loss.divide_by_variance = True
    config.optimizer.learning_rate = 3e-4
