"""TimeSformer tokenizers of video: Table 5 of the rotation-trick paper (Fifty et al., ICLR 2025), both rows.

Arguments: dataset (bair, ucf101; panning: clips of bundled photographs, no download), estimator, folder (video files or
           directories of frames in the place of tensorflow-datasets), and discriminator (False: the same without one)
Data:      bair_robot_pushing_small or ucf101 of tensorflow-datasets; for LPIPS of frames, --config.task.perceptual.file
           (docs/options.md), without which the reconstruction loss is L1 alone
Command:   python train.py --config=configs/timesformer.py:dataset=bair --workdir=runs/bair
Hardware:  one GPU of 80 GB
Time:      not run yet
Result:    not run yet. The paper has, with the r-FVD of its own protocol:

           | dataset | estimator        | usage  | error (validation) | r-FVD  |
           | bair    | straight_through | 0.4 %  | 0.28               | 1661.1 |
           | bair    | rotation         | 43 %   | 0.074              | 21.4   |
           | ucf101  | straight_through | 0.1 %  | 0.169              | 2878.1 |
           | ucf101  | rotation         | 30 %   | 0.109              | 229.1  |

There is no published code of this table. From the paper's appendix: depth, features, heads, codes of 32 features, size
of clips and patches, batch, learning rate, and epochs; 1,024 codes in the table's caption are 2,048 for UCF-101 in the
appendix, which is taken. Codebook and losses are those of its VQGANs (configs/vqgan.py), the discriminator is that of
TATS, and the number of clips in UCF-101 an estimate of its first split. The rate of 4.5e-6 for UCF-101 is taken as it
stands; as a base rate, which taming-transformers multiplies by the batch, it would be 9e-5.
"""

from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.training.config import base_config

# Side, patch, codes, batch, learning rate, clips of an epoch, epochs.
SIZES = {
    "bair": (64, 2, 1024, 24, 1e-4, 43_264, 30),
    "ucf101": (128, 4, 2048, 20, 4.5e-6, 110_000, 3),
    "panning": (64, 2, 1024, 24, 1e-4, 1024, 300),
}


def get_config(
    *,
    dataset: Literal["bair", "ucf101", "panning"] = "bair",
    estimator: str = "rotation",
    folder: Path | None = None,
    discriminator: bool = True,
) -> ConfigDict:
    side, patch_size, num_codes, batch_size, learning_rate, clips, epochs = SIZES[dataset]
    config = base_config()
    config.batch_size = batch_size
    config.num_steps = epochs * clips // batch_size
    config.eval_every = config.checkpoint_every = 2000

    data = dict(image_size=side, frames=16)
    if folder is not None:
        data |= dict(source="video_folder", name=str(folder), crop="bilinear", random_start=True)
    elif dataset == "panning":
        data |= dict(source="panning_photos")
    else:
        name, feature = ("bair_robot_pushing_small", "image_main") if dataset == "bair" else ("ucf101", "video")
        data |= dict(source="tfds_video", name=name, feature=feature, crop="bilinear", random_start=True)
    config.data = data

    config.model = dict(
        name="timesformer",
        patch_size=patch_size,
        dim=256,
        depth=8,
        heads=4,
        mlp_dim=768,
        code_dim=32,
        dtype="bfloat16",
        remat=True,
    )
    config.quantizer = quantizers.defaults(
        "vq",
        num_codes=num_codes,
        estimator=estimator,
        codebook=dict(name="gradient", weight=1.0),
        commitment_weight=0.25,
        codebook_init="inverse_size",
    )
    config.loss = dict(name="l1")
    if discriminator:
        config.task = dict(
            name="vqgan",
            discriminator=dict(name="patchgan3d", channels=64, num_layers=3),
            perceptual=dict(name="lpips", weight=1.0),
            adversarial="hinge",
            adversarial_weight=0.75,
            max_adaptive_weight=1e4,
        )
    config.optimizer = dict(name="adam", learning_rate=learning_rate, b1=0.5, b2=0.9)
    return config
