"""VQGAN of ten classes of ImageNet at 128 pixels, for one GPU, or as `:tiny` for two CPU cores.

Arguments: tiny, discriminator (False: the same without one), estimator, and folder (photographs as folders of classes
           in train/ and val/; otherwise imagenette of tensorflow-datasets)
Data:      9,469 photographs to train on, 3,925 held out; for LPIPS, --config.task.perceptual.file=FILE
           (docs/options.md), without which the reconstruction loss is L1 alone
Command:   python train.py --config=configs/imagenette.py:tiny,folder=data/imagenette --workdir=runs/imagenette
Time:      tiny: about 1 hour on two CPU cores, by the CPU time of its first steps (1.6 s a step)
Result:    not run to its end yet
"""

from pathlib import Path

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.training.config import base_config


def get_config(
    *,
    tiny: bool = False,
    discriminator: bool = True,
    estimator: str = "tangential_rotation",
    folder: Path | None = None,
) -> ConfigDict:
    config = base_config()
    config.batch_size = 8 if tiny else 32
    config.num_steps = 4000 if tiny else 50_000
    config.eval_every = config.checkpoint_every = 1000 if tiny else 5000

    if folder is None:
        data = dict(source="tfds", name="imagenette/160px-v2", eval_split="validation")
    else:
        data = dict(source="image_folder", name=str(folder), eval_split="val")
    config.data = data | dict(image_size=128, crop="bilinear", flip=True)

    # 16 x 16 tokens of 9 or 12 bits.
    model = dict(name="vqgan", resolution=128, code_dim=8)
    if tiny:
        model |= dict(channels=32, multipliers=(1, 1, 2, 2), num_res_blocks=1, latent_dim=64)
        model |= dict(attention_resolutions=())
    else:
        model |= dict(channels=128, multipliers=(1, 2, 2, 4), num_res_blocks=2, latent_dim=256)
        model |= dict(attention_resolutions=(16,), dtype="bfloat16")
    config.model = model
    config.quantizer = quantizers.defaults(
        "vq",
        num_codes=512 if tiny else 4096,
        estimator=estimator,
        codebook=dict(name="ema", dead_code_threshold=0.1, replace=dict(below=0.1)),
    )
    config.loss = dict(name="l1")
    if discriminator:
        config.task = dict(
            name="vqgan",
            discriminator=dict(name="patchgan", channels=32 if tiny else 64, num_layers=3),
            perceptual=dict(name="lpips", weight=1.0),
            adversarial_weight=0.5,
            max_adaptive_weight=10.0,
            start=500 if tiny else 5000,
            lecam_weight=0.05,
        )
    else:
        config.task = dict(name="vqvae")
    config.optimizer = dict(name="adam", learning_rate=4e-4 if tiny else 1e-4, b1=0.5, b2=0.9)
    return config
