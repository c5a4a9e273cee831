"""Variants of the collapse experiment.

To add a variant, append a line: only its runs are made. The name is all that a record says of a variant, so another
definition needs another name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqjax.estimators import ESTIMATORS, clip_norm_ratio
from vqjax.functional.regularizers import Diversity
from vqjax.quantizers import (
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    LearnedAffine,
    LinearTransform,
    Replacement,
    RunningAffine,
)
from vqjax.tasks.decoder_gradient import DECODER_GRADIENTS


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
      quantizer: Arguments of :class:`vqjax.VectorQuantizer` beside ``num_codes``; the estimator is rotation otherwise.
      decoder_gradient: See :class:`vqjax.tasks.decoder_gradient.DecoderGradientTask`; None for the estimator.
      kmeans_start: Whether the codebook starts from clusters of the untrained encoder's latents.
    """

    quantizer: Mapping[str, Any] = field(default_factory=dict)
    decoder_gradient: str | None = None
    kmeans_start: bool = False


STARTS = {"fitting": 1.0, "too long": 10.0}
"""Initial codes by name: the factor on the library's, whose expected squared length is one.

Codes that are too long are the adversarial start: most latents are nearest to one of very few codes.
"""

ESTIMATOR_VARIANTS = {name: Variant({"estimator": name}) for name in ESTIMATORS} | {
    name: Variant(decoder_gradient=name) for name in DECODER_GRADIENTS
}
_TASK_ALONE = {"codebook": GradientCodebook(weight=0.0), "commitment_weight": 0.0}
_REPLACED = {"codebook": EMACodebook(replace=Replacement(below=0.1), dead_code_threshold=0.1)}

ESTIMATOR_VARIANTS |= {
    "rotation, scale of at most 1": Variant({"estimator": clip_norm_ratio("rotation", 1.0)}),
    "diveq, codes learn from the task": Variant({"estimator": "diveq"} | _TASK_ALONE),
    "space_filling_diveq, codes learn from the task": Variant({"estimator": "space_filling_diveq"} | _TASK_ALONE),
    "noise_substitution, codes learn from the task": Variant({"estimator": "noise_substitution"} | _TASK_ALONE),
    "gumbel_softmax, gradient codebook": Variant({"estimator": "gumbel_softmax", "codebook": "gradient"}),
}
"""Estimators: each at its defaults, rotation with a clipped scale, and those that train the codes as in the papers."""

REMEDIES = {
    "none": Variant(),
    "replace dead codes": Variant(_REPLACED),
    "replace after 50 idle batches": Variant(
        {"codebook": EMACodebook(replace=Replacement(below=None, unused_after=50))}
    ),
    "k-means start": Variant(kmeans_start=True),
    "k-means start, replace dead codes": Variant(_REPLACED, kmeans_start=True),
    "decay 0.8": Variant({"codebook": EMACodebook(decay=0.8)}),
    "cosine": Variant({"distance": "cosine"}),
    "cosine, replace dead codes": Variant({"distance": "cosine"} | _REPLACED),
    "projection to 4 dimensions": Variant({"codebook_dim": 4}),
    "running affine": Variant({"codebook": EMACodebook(transform=RunningAffine())}),
    "gradient codebook": Variant({"codebook": "gradient"}),
    "gradient codebook, learned affine": Variant({"codebook": GradientCodebook(transform=LearnedAffine(10.0))}),
    "gradient codebook, synchronization 0.2": Variant({"codebook": GradientCodebook(sync_nu=0.2)}),
    "gradient codebook, diversity 0.1": Variant({"codebook": "gradient", "regularizers": (Diversity(0.1),)}),
    "SimVQ": Variant({"codebook": FrozenCodebook(transform=LinearTransform())}),
    "straight-through, replace dead codes": Variant({"estimator": "straight_through"} | _REPLACED),
}
"""Remedies against unused codes, with rotation as published unless the name says otherwise."""

GROUPS = {"estimators": ESTIMATOR_VARIANTS, "remedies": REMEDIES}
