"""ImageNet at 224 pixels, with quantizers between the layers of a classifier or without.

Arguments: model (resnet18, alexnet, vit), vq (a quantizer in the middle), folder (photographs as folders of classes in
           train/ and val/; otherwise imagenet2012 of tensorflow-datasets)
Data:      1,281,167 photographs to train on, 50,000 held out
Command:   python train.py --config=configs/classify_imagenet.py:vq,folder=data/imagenet --workdir=runs/imagenet
Time:      for several GPUs
Result:    not run yet
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
    config.batch_size = 256
    config.num_steps = 90 * (1_281_167 // config.batch_size)
    config.eval_every = config.checkpoint_every = config.num_steps // 90
    if folder is None:
        data = dict(source="tfds", name="imagenet2012", eval_split="validation")
    else:
        data = dict(source="image_folder", name=str(folder), eval_split="val")
    config.data = data | dict(image_size=224, crop="bilinear", random_crop="resized", flip=True)
    config.loss = dict(name="cross_entropy", label_smoothing=0.1)
    config.task = dict(name="classification")
    place = {"resnet18": "stage_2", "alexnet": "conv_3", "vit": "block_6"}[model]
    sizes = dict(num_classes=1000, dtype="bfloat16")
    if model == "vit":
        config.model = dict(name="vit", patch_size=16, dim=384, heads=6, mlp_dim=1536) | sizes
        config.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0)
        config.task.mixup = 0.2
    else:
        config.model = dict(name=model, stem="imagenet") | sizes
        rate = 0.1 if model == "resnet18" else 0.01
        config.optimizer = dict(name="sgd", learning_rate=rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = config.num_steps // 20
    codebook = dict(name="ema", dead_code_threshold=0.1, replace=dict(below=0.1))
    config.quantizer = {place: quantizers.defaults("vq", num_codes=4096, codebook=codebook)} if vq else {}
    return config
