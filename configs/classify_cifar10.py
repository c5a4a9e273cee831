"""CIFAR-10 classes, with a quantizer between the layers of a classifier or without.

Arguments: model (resnet18, alexnet, vit), small (for two CPU cores), vq (a quantizer in the middle), codes, epochs,
           estimator, and remedies: none, affine, opt (alternating and synchronized steps) and all are those of vqtorch
           on codes that are learned by gradient; ema and replaced have moving averages
Data:      CIFAR-10 as tensorflow-datasets prepares it (array_record), found through TFDS_DATA_DIR.

Command:   python train.py --config=configs/classify_cifar10.py --workdir=runs/resnet18
Time:      for one GPU; epochs=20 in bfloat16 took 150 s of an H200, beside other trainings
Result:    epochs=20: 69.3, 83.3, 87.1, 91.0 and 92.3 % of the test images after 4, 8, 12, 16 and 20 epochs

Command:   python train.py --config=configs/classify_cifar10.py:small,epochs=10 --workdir=runs/resnet18_small
Time:      26 minutes on two slow CPU cores (323 images/s)
Result:    85.9 % of the test images; 85.6 %, trained on an H200
"""

from typing import Any, Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.errors import UserError
from vqjax.training.config import base_config


def get_config(
    *,
    model: Literal["resnet18", "alexnet", "vit"] = "resnet18",
    small: bool = False,
    vq: bool = False,
    codes: int = 512,
    remedies: Literal["none", "affine", "opt", "all", "ema", "replaced"] = "none",
    estimator: str = "tangential_rotation",
    epochs: int = 100,
) -> ConfigDict:
    if not vq and (remedies != "none" or codes != 512 or estimator != "tangential_rotation"):
        raise UserError("vq must be True with remedies, codes or an estimator, got False; add vq to the arguments.")
    config = base_config()
    config.batch_size = 128
    config.num_steps = epochs * (50_000 // config.batch_size)
    config.eval_every = config.checkpoint_every = config.num_steps // 5
    config.data = dict(source="tfds", name="cifar10", image_size=32, flip=True, crop_padding=4)
    config.loss = dict(name="cross_entropy", label_smoothing=0.1)
    config.task = dict(name="classification")
    if model == "resnet18":
        place, config.model = "stage_2", dict(name="resnet18", width=16 if small else 64)
        config.optimizer = dict(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    elif model == "alexnet":
        place, config.model = "conv_3", dict(name="alexnet", hidden=256 if small else 1024)
        config.optimizer = dict(name="sgd", learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    else:
        sizes = dict(dim=64, depth=6, heads=1, mlp_dim=256) if small else {}
        place, config.model = "block_3" if small else "block_6", dict(name="vit") | sizes
        config.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.05)
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = config.num_steps // 20
    config.quantizer = {}
    if vq:
        codebook = _codebook(remedies)
        config.quantizer = {place: quantizers.defaults("vq", num_codes=codes, estimator=estimator, codebook=codebook)}
        if remedies in ("opt", "all"):
            config.task.codebook_steps = 1
        config.task.kmeans_init = remedies == "all"
    return config


def _codebook(remedies: str) -> dict[str, Any]:
    if remedies in ("ema", "replaced"):
        replaced = dict(dead_code_threshold=0.1, replace=dict(below=0.1)) if remedies == "replaced" else {}
        return dict(name="ema") | replaced
    codebook = dict(name="gradient")
    if remedies in ("opt", "all"):
        # Steps of their own take the place of the codebook loss.
        codebook |= dict(weight=0.0, sync_nu=0.2)
    if remedies in ("affine", "all"):
        codebook["transform"] = dict(name="learned_affine", learning_rate_scale=10.0)
    if remedies == "all":
        codebook["replace"] = dict(below=None, unused_after=20)
    return codebook
