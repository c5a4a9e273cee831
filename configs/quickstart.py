"""Bundled photographs, no download: what a bare `python train.py` runs.

Command:   python train.py
"""

from ml_collections import ConfigDict

from vqjax.training.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.num_steps = 2500
    config.batch_size = 16
    config.log_every = 50
    config.eval_every = 500
    config.checkpoint_every = 500

    config.data.source = "photos"
    config.data.image_size = 64
    config.data.flip = True

    config.model.width = 64

    config.quantizer.num_codes = 256
    config.quantizer.replace_dead_codes = True
    config.quantizer.dead_code_threshold = 0.1

    config.loss.divide_by_variance = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    return config
