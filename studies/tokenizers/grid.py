"""Trainings of the study: the configs of published tokenizers at small width, and the estimators.

The names are all that a record says of a training, so another definition needs another name.
"""

from studies.common.trainings import Setting

_IMAGES = ("data.image_size=64", "data.random_crop=None", "batch_size=16")
_CNN = ("model.channels=32", "model.dtype=float32")
# The published warm-up alone is longer than these trainings.
_VQVAE = (*_IMAGES, *_CNN, "gradient_accumulation=None", "optimizer.warmup_steps=100", "optimizer.learning_rate=5e-4")
_VQGAN = (*_IMAGES, *_CNN, "task.discriminator.channels=32", "optimizer.learning_rate=4e-4")
_VIT = ("model.dim=128", "model.depth=4", "model.heads=4", "model.mlp_dim=512")
_VIT += ("task.discriminator.channels=32,32,64,64,64",)

STEPS = 2000

SETTINGS = {
    "vqvae_euclidean": Setting("configs/imagenet_vqvae.py:latent=64x64x3,folder=data/imagenette", STEPS, _VQVAE),
    "vqvae_cosine": Setting(
        "configs/imagenet_vqvae.py:distance=cosine,latent=64x64x3,folder=data/imagenette", STEPS, _VQVAE
    ),
    "vqgan": Setting("configs/vqgan.py:model=ldm_f4,folder=data/imagenette", STEPS, _VQGAN),
    "vit_vqgan": Setting(
        "configs/vit_vqgan.py:folder=data/imagenette", STEPS, (*_IMAGES, *_VIT, "optimizer.learning_rate=4e-4")
    ),
}
"""Table 1 of the paper by both distances, Table 3 and Table 4."""

DISCRIMINATED = {
    "without": Setting("configs/imagenette.py:tiny,discriminator=False,folder=data/imagenette"),
    "with": Setting("configs/imagenette.py:tiny,folder=data/imagenette"),
}
"""The config for two CPU cores, without and with its discriminator."""

ESTIMATORS = ("straight_through", "rotation", "rotation_normalized", "tangential_rotation")


def overrides(setting: str, estimator: str) -> list[str]:
    """Return the changes of a setting's config.

    Args:
      setting: A key of ``SETTINGS``.
      estimator: Name of an estimator.

    Returns:
      Changes of the config.

    Example:
      >>> overrides("vqgan", "rotation")
      ['quantizer.estimator=rotation']
    """
    changes = [f"quantizer.estimator={estimator}"]
    if setting == "vit_vqgan":
        # Theirs passes around the scaling to unit length.
        changes.append(f"quantizer.differentiate_norm={estimator != 'straight_through'}")
    return changes
