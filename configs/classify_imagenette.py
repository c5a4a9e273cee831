"""Ten classes of ImageNet at 128 pixels, with quantizers between the layers of a classifier or without.

Arguments: model (resnet18, alexnet, vit), vq (a quantizer in the middle), folder (photographs as folders of classes in
           train/ and val/; otherwise imagenette of tensorflow-datasets)
Data:      9,469 photographs to train on, 3,925 held out
Command:   python train.py --config=configs/classify_imagenette.py:vq,folder=data/imagenette --workdir=runs/imagenette
Time:      for one GPU
Result:    not run to its end yet
"""

from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.training.config import base_config


def get_config(
    *,
    model: Literal["resnet18", "alexnet", "vit"] = "resnet18",
    vq: bool = False,
    folder: Path | None = None,
) -> ConfigDict:
    config = base_config()
    config.batch_size = 64
    config.num_steps = 60 * (9_469 // config.batch_size)
    config.eval_every = config.checkpoint_every = config.num_steps // 10
    if folder is None:
        data = dict(source="tfds", name="imagenette/160px-v2", eval_split="validation")
    else:
        data = dict(source="image_folder", name=str(folder), eval_split="val")
    config.data = data | dict(image_size=128, crop="bilinear", random_crop="resized", flip=True)
    config.loss = dict(name="cross_entropy", label_smoothing=0.1)
    config.task = dict(name="classification")
    place = {"resnet18": "stage_2", "alexnet": "conv_3", "vit": "block_6"}[model]
    if model == "vit":
        config.model = dict(name="vit", patch_size=16)
        config.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.05)
    else:
        config.model = dict(name=model, stem="imagenet")
        rate = 0.1 if model == "resnet18" else 0.02
        config.optimizer = dict(name="sgd", learning_rate=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = config.num_steps // 20
    codebook = dict(name="ema", dead_code_threshold=0.1, replace=dict(below=0.1))
    config.quantizer = {place: quantizers.defaults("vq", num_codes=1024, codebook=codebook)} if vq else {}
    return config
