"""Trainings of the study: classifiers of CIFAR-10, and the quantizers in their middle.

The names are all that a record says of a training, so another definition needs another name.
"""

from studies.common.trainings import Setting

MODELS = ("resnet18", "alexnet", "vit")

SCALES = {"cpu": "small,epochs=10", "short": "epochs=30", "full": "epochs=100"}
"""Size of the networks and length of the trainings, by scale: for two CPU cores, a GPU for an hour, and a GPU."""

_ON_GPU = ("model.dtype=bfloat16",)

# A gradient codebook without remedies, as vqtorch's own.
_NAIVE = "vq,estimator=straight_through"

QUANTIZERS = {
    "none": "",
    "straight-through": _NAIVE,
    "affine": f"{_NAIVE},remedies=affine",
    "alternating and synchronized": f"{_NAIVE},remedies=opt",
    "all": f"{_NAIVE},remedies=all",
    "rotation": "vq,estimator=rotation",
    "default": "vq,remedies=ema",
    "default, dead codes replaced": "vq,remedies=replaced",
}
"""Arguments of configs/classify_cifar10.py by the name of a row."""


def setting_of(model: str, quantizer: str, scale: str) -> Setting:
    """Return the config of a row.

    Args:
      model: One of ``MODELS``.
      quantizer: A key of ``QUANTIZERS``.
      scale: A key of ``SCALES``.

    Example:
      >>> setting_of("resnet18", "none", "full").config
      'configs/classify_cifar10.py:model=resnet18,epochs=100'
    """
    arguments = ",".join(filter(None, (f"model={model}", SCALES[scale], QUANTIZERS[quantizer])))
    return Setting(f"configs/classify_cifar10.py:{arguments}", changes=() if scale == "cpu" else _ON_GPU)
