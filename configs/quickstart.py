"""Bundled photographs, no download: what a bare `python train.py` runs.

Arguments: quantizer, any name of vqjax/quantizers/registry.py, at about 8 bits per latent vector
           (vqjax/training/quantizer_presets.py); for example configs/quickstart.py:quantizer=fsq
Data:      64 x 64 crops of six photographs to train on and of two others to evaluate on, all from scikit-image.
Command:   python train.py
Time:      2 minutes on two cores of a server CPU that are otherwise idle
Result:    held-out PSNR 24.7 dB, 7.8 dB above each image's mean color; 246 of 256 codes in use
"""

from ml_collections import ConfigDict

from vqjax.training.config import default_config, parse_variant
from vqjax.training.quantizer_presets import use_preset


def get_config(argument: str = "") -> ConfigDict:
    variant = parse_variant(argument, quantizer="vector")
    config = default_config()
    config.num_steps = 2000
    config.batch_size = 16
    config.log_every = 50
    config.eval_every = 500
    config.checkpoint_every = 500

    config.data.source = "photos"
    config.data.image_size = 64
    config.data.flip = True

    config.model.width = 64

    use_preset(config, variant.quantizer)

    config.loss.divide_by_variance = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    return config
