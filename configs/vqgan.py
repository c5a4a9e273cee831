"""VQGANs of taming-transformers and latent diffusion at 256 pixels: Tables 2 and 3 of the rotation-trick paper.

Arguments: model (f16, f16_16384: taming's; ldm_f4, ldm_f4_noattn, ldm_f8, ldm_f8_n256, ldm_f16), estimator, folder
           (ImageNet as folders of classes in train/ and val/; with faces, any folder of images such as FFHQ), faces
           (without a folder: celeba of tensorflow-datasets), and faithful, or corrected, which is the default
Data:      without a folder imagenet2012 of tensorflow-datasets; for LPIPS, --config.task.perceptual.file=FILE
           (docs/options.md), without which the reconstruction loss is L1 alone
Command:   python train.py --config=configs/vqgan.py:model=ldm_f4 --workdir=runs/ldm_f4
Hardware:  one GPU of 80 GB for ldm_f4 and ldm_f8, four for f16 (48 images a step)
Time:      not run yet
Result:    not run yet. The rotation-trick paper has, of validation images, r-FID and r-IS in its protocol:

           | model  | data  | estimator        | usage | r-FID | r-IS  |
           | f16    |       | straight_through | 95 %  | 7.3   | 118.2 |
           | f16    |       | rotation         | 98 %  | 4.6   | 146.5 |
           | f16    | faces | straight_through | 27 %  | 4.7   | 5.0   |
           | f16    | faces | rotation         | 99 %  | 3.7   | 5.2   |
           | ldm_f4 |       | straight_through | 15 %  | 0.53  | 220.6 |
           | ldm_f4 |       | gumbel_softmax   | 4 %   | 0.60  | 219.7 |
           | ldm_f4 |       | rotation         | 86 %  | 0.27  | 228.0 |
           | ldm_f8 |       | straight_through | 2 %   | 5.0   | 141.5 |
           | ldm_f8 |       | gumbel_softmax   | 12 %  | 1.7   | 189.5 |
           | ldm_f8 |       | rotation         | 27 %  | 1.1   | 200.2 |

           Its faces are FFHQ and CelebA-HQ together.

As in the published code, where it differs from the papers: the learning rate of 4.5e-6 is one for each image of a step,
and both networks wait for the start of the discriminator. `faithful` also has its weights of one on the commitment and
0.25 on the codebook, its gradient without the radial part (rotation_normalized), its scaling without antialiasing, and
a pass of its own for the discriminator. `corrected` has 0.25 on the commitment and one on the codebook, as the papers
write, the rotation trick of the paper, antialiased images, and one pass for both networks.

Differs from the published code in both: LPIPS has no dropout, and latent diffusion's models were trained on OpenImages.
There is no published code of Table 2 and of the rows Gumbel; ldm_f16 and those that neither table has are the models of
latent diffusion and taming-transformers with the paper's number of steps.
"""

from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.errors import UserError
from vqjax.training.config import base_config

# Multipliers, heights with attention, features of a code, codes; of the discriminator: layers, start, weight.
MODELS = {
    "f16": ((1, 1, 2, 2, 4), (16,), 256, 1024, 3, 250_001, 0.8),
    "f16_16384": ((1, 1, 2, 2, 4), (16,), 256, 16384, 2, 0, 0.75),
    "ldm_f4": ((1, 2, 4), (), 3, 8192, 3, 0, 0.75),
    "ldm_f4_noattn": ((1, 2, 4), (), 3, 8192, 3, 11, 0.75),
    "ldm_f8": ((1, 2, 2, 4), (32,), 4, 16384, 2, 1, 0.6),
    "ldm_f8_n256": ((1, 2, 2, 4), (32,), 4, 256, 3, 250_001, 0.75),
    "ldm_f16": ((1, 1, 2, 2, 4), (16,), 8, 16384, 2, 250_001, 0.75),
}
IMAGENET, FACES = 1_281_167, 85_000


def get_config(
    *,
    model: Literal[*MODELS] = "f16",
    estimator: str | None = None,
    folder: Path | None = None,
    faces: bool = False,
    faithful: bool = False,
    corrected: bool = False,
) -> ConfigDict:
    if faithful and corrected:
        raise UserError("faithful and corrected must not both be given; choose one.")
    multipliers, attention, code_dim, num_codes, num_layers, start, weight = MODELS[model]
    is_ldm = model.startswith("ldm")
    config = base_config()
    config.batch_size = 16 if is_ldm else 48
    images, epochs = (FACES, 50) if faces else (IMAGENET, 4 if is_ldm else 18)
    config.num_steps = epochs * images // config.batch_size
    config.eval_every = config.checkpoint_every = 10_000

    if folder is None:
        data = dict(source="tfds", name="celeba" if faces else "imagenet2012", eval_split="validation")
    elif faces:
        data = dict(source="image_folder", name=str(folder), train_split=None, eval_split=None)
    else:
        data = dict(source="image_folder", name=str(folder), eval_split="val")
    config.data = data | dict(image_size=256, crop="opencv" if faithful else "bilinear", random_crop="window")

    config.model = dict(
        name="vqgan",
        channels=128,
        num_res_blocks=2,
        multipliers=multipliers,
        attention_resolutions=attention,
        middle_attention=model != "ldm_f4_noattn",
        latent_dim=code_dim,
        code_dim=code_dim,
    )
    config.quantizer = quantizers.defaults(
        "vq",
        num_codes=num_codes,
        estimator=estimator or ("rotation_normalized" if faithful else "rotation"),
        codebook=dict(name="gradient", weight=0.25 if faithful else 1.0),
        commitment_weight=1.0 if faithful else 0.25,
        codebook_init="inverse_size",
    )
    config.loss = dict(name="l1")
    config.task = dict(
        name="vqgan",
        discriminator=dict(name="patchgan", channels=64, num_layers=num_layers),
        perceptual=dict(name="lpips", weight=1.0),
        adversarial="hinge",
        adversarial_weight=weight,
        start=30_001 if faces and model == "f16" else start,
        order="generator_first" if faithful else "together",
    )
    config.optimizer = dict(name="adam", learning_rate=4.5e-6 * config.batch_size, b1=0.5, b2=0.9)
    return config
