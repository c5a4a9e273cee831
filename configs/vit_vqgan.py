"""ViT-VQGANs of ImageNet at 256 pixels, as enhancing-transformers trains them: Table 4 of the rotation-trick paper.

Arguments: size (small, base, large), estimator, folder (ImageNet as folders of classes in train/ and val/; otherwise
           imagenet2012 of tensorflow-datasets), and faithful, or corrected, which is the default
Data:      for LPIPS, --config.task.perceptual.file=FILE (docs/options.md), without which the reconstruction loss is the
           squared error alone
Command:   python train.py --config=configs/vit_vqgan.py --workdir=runs/vit_vqgan
Hardware:  one GPU of 80 GB for small and base
Time:      not run yet
Result:    not run yet. The rotation-trick paper has for small, of validation images, in its protocol:

           | estimator        | usage | r-FID | r-IS |
           | straight_through | 0.3 % | 29.2  | 43.0 |
           | rotation         | 2.2 % | 11.2  | 93.1 |

Steps, batch and learning rate are the paper's (10 epochs of 32 images), the hidden features of the two-layer networks
those of the published config (2048; the paper says 1024). `faithful` also squashes validation images to a square, and
has a pass of its own for the discriminator. `corrected` cuts out their center, and has one pass for both networks.

Differs from the published code in both: LPIPS has no dropout, weight decay leaves norms and biases alone, the R1
penalty counts the steps of the run instead of the epoch's, and discriminator and LPIPS see pixels in [-1, 1]. The
published gradient without the radial part, of codes of unit length, is that of `rotation` here; `straight_through`
passes around the scaling to unit length, as theirs does.
"""

from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.errors import UserError
from vqjax.training.config import base_config

SIZES = {
    "small": dict(dim=512, depth=8, heads=8, mlp_dim=2048),
    "base": dict(dim=768, depth=12, heads=12, mlp_dim=3072),
    "large": dict(dim=512, depth=8, heads=8, mlp_dim=2048)
    | dict(decoder_dim=1280, decoder_depth=32, decoder_heads=16, decoder_mlp_dim=5120),
}


def get_config(
    *,
    size: Literal[*SIZES] = "small",
    estimator: str = "rotation",
    folder: Path | None = None,
    faithful: bool = False,
    corrected: bool = False,
) -> ConfigDict:
    if faithful and corrected:
        raise UserError("faithful and corrected must not both be given; choose one.")
    config = base_config()
    config.batch_size = 32
    config.num_steps = 10 * 1_281_167 // config.batch_size
    config.eval_every = config.checkpoint_every = 10_000

    if folder is None:
        data = dict(source="tfds", name="imagenet2012", eval_split="validation")
    else:
        data = dict(source="image_folder", name=str(folder), eval_split="val")
    crop = "squash" if faithful else "bilinear"
    config.data = data | dict(image_size=256, crop=crop, random_crop="window", flip=True)

    config.model = dict(name="vit_vqgan", patch_size=8, code_dim=32, pixels="unit", **SIZES[size])
    config.quantizer = quantizers.defaults(
        "vq",
        num_codes=8192,
        distance="cosine",
        estimator=estimator,
        differentiate_norm=estimator != "straight_through",
        codebook=dict(name="gradient", weight=1.0),
        commitment_weight=0.25,
        codebook_init="normal",
    )
    # Weights of pixels in [0, 1], for those in [-1, 1]: squared errors and squared slopes differ by a factor of four.
    config.loss = dict(name="mse", weight=1.0 / 4)
    config.task = dict(
        name="vqgan",
        discriminator=dict(name="stylegan"),
        perceptual=dict(name="lpips", weight=0.1),
        adversarial="non_saturating",
        adversarial_weight=0.1,
        max_adaptive_weight=None,
        r1_weight=5.0 * 4,
        r1_every=16,
        order="generator_first" if faithful else "together",
    )
    config.optimizer = dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.99, weight_decay=1e-4)
    return config
