"""Trainings of the study: settings, estimators and remedies, as changes of configs.

The names are all that a record says of a training, so another definition needs another name.
"""

from studies.common.trainings import Setting
from studies.rotation.candidates import CANDIDATES

SETTINGS = {
    "photographs": Setting("configs/quickstart.py"),
    "sonnet": Setting("configs/cifar10.py:sonnet", 2000),
    "sonnet_long": Setting("configs/cifar10.py:sonnet"),
    "residual": Setting("configs/cifar10.py:epochs=5"),
    "imagenette": Setting(
        "configs/imagenette.py:tiny,discriminator=False,folder=data/imagenette",
        1500,
        ("data.image_size=64", "model.resolution=64"),
    ),
}
"""Settings by name; remedies are combined with estimators in ``"sonnet"``."""

ESTIMATORS = (
    "straight_through",
    "rotation",
    "rotation_unscaled",
    "rotation_normalized",
    "rotation_about_mean",
    "tangential_rotation",
    "tangential_rotation_rescaled",
    "reflection",
    "dynamic_straight_through",
    "diveq",
    "index_backpropagation",
    *CANDIDATES,
)
"""Estimators that are trained on every setting; index backpropagation is a quantizer of its own."""

COMBINED = ("straight_through", "rotation", "tangential_rotation", "diveq", "dynamic_straight_through")
"""Estimators that are combined with every remedy."""

FINALISTS = ("straight_through", "tangential_rotation", "half_diveq")
"""Estimators that are compared on fresh seeds."""

_REGION = ("quantizer.codebook.weight=0.0", "quantizer.regularizers.region.weight=1.0")
_LEARNED = ("quantizer.codebook.name=gradient",)
_DECOUPLED = ("optimizer.schedule=linear", "optimizer.quantizer_learning_rate=1e-3")
# Each stage has a gradient of its own, which every estimator can give.
_RESIDUAL = ("quantizer.name=residual", "quantizer.quantizer.name=vq", "quantizer.gradient=per_stage")

REMEDIES = {
    "none": (),
    "dead codes replaced": ("quantizer.codebook.replace.below=0.1", "quantizer.codebook.dead_code_threshold=0.1"),
    "unit length": ("quantizer.distance=cosine",),
    "unit length, passed around": ("quantizer.distance=cosine", "quantizer.differentiate_norm=False"),
    "rms norm": ("quantizer.latent_norm=rms",),
    "layer norm": ("quantizer.latent_norm=layer",),
    "8 dimensions": ("model.latent_dim=8",),
    "running affine": ("quantizer.codebook.transform.name=running_affine",),
    "sim_vq": ("quantizer.name=sim_vq", "quantizer.num_codes=512"),
    "learned codes": _LEARNED,
    "learned codes, decoupled rates": (*_LEARNED, *_DECOUPLED),
    "region vq": (*_LEARNED, *_REGION),
    "region vq, decoupled rates": (*_LEARNED, *_REGION, *_DECOUPLED),
    "fvq bridge": (*_LEARNED, "quantizer.codebook.transform.name=bridge"),
    "residual of 2": (*_RESIDUAL, "quantizer.num_quantizers=2", "quantizer.quantizer.num_codes=512"),
    "commitment weight 0.1": ("quantizer.commitment_weight=0.1",),
    "commitment weight 1": ("quantizer.commitment_weight=1.0",),
    "relative commitment 0.1": ("quantizer.commitment=relative", "quantizer.commitment_weight=0.1"),
    "angular commitment 0.1": ("quantizer.commitment=angular", "quantizer.commitment_weight=0.1"),
}
"""Changes of the config that keep codes in use, by name."""


CONFIRMED_WITH = ("none", "dead codes replaced")
"""Remedies with which the finalists are compared."""

FRESH = 100
"""Seeds from here on are for that comparison, which no choice has seen."""


def overrides(estimator: str, remedy: str) -> list[str]:
    """Return the changes of a setting's config.

    Args:
      estimator: Name of an estimator.
      remedy: A key of ``REMEDIES``.

    Returns:
      Changes of the config.

    Example:
      >>> overrides("rotation", "unit length")
      ['quantizer.distance=cosine', 'quantizer.estimator=rotation']
    """
    if estimator == "index_backpropagation":
        return [*REMEDIES[remedy], "quantizer.name=ibq"]
    field = "quantizer.quantizer.estimator" if remedy == "residual of 2" else "quantizer.estimator"
    return [*REMEDIES[remedy], f"{field}={estimator}"]
