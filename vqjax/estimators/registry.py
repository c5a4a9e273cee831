"""Estimators by name, and the arguments they take."""

import inspect

from vqjax.errors import UserError, did_you_mean
from vqjax.estimators.diveq import diveq, diveq_detached, noise_substitution, space_filling_diveq
from vqjax.estimators.gumbel_softmax import gumbel_softmax
from vqjax.estimators.jacobian import Estimator
from vqjax.estimators.rotation import (
    reflection,
    rotation,
    rotation_about_mean,
    rotation_normalized,
    rotation_unscaled,
    tangential_rotation,
    tangential_rotation_rescaled,
)
from vqjax.estimators.straight_through import dynamic_straight_through, straight_through

ESTIMATORS: dict[str, Estimator] = {
    "straight_through": straight_through,
    "rotation": rotation,
    "rotation_unscaled": rotation_unscaled,
    "rotation_normalized": rotation_normalized,
    "rotation_about_mean": rotation_about_mean,
    "tangential_rotation": tangential_rotation,
    "tangential_rotation_rescaled": tangential_rotation_rescaled,
    "reflection": reflection,
    "dynamic_straight_through": dynamic_straight_through,
    "diveq": diveq,
    "diveq_detached": diveq_detached,
    "space_filling_diveq": space_filling_diveq,
    "noise_substitution": noise_substitution,
    "gumbel_softmax": gumbel_softmax,
}
"""Estimators by name."""


def get_estimator(estimator: str | Estimator) -> Estimator:
    """Look up an estimator by name; return a callable unchanged.

    Args:
      estimator: A key of ``ESTIMATORS``, or any callable ``(z, q) -> q'``.

    Returns:
      The callable.

    Raises:
      UserError: The name is unknown.

    Example:
      >>> get_estimator("rotation") is rotation
      True
    """
    if callable(estimator):
        return estimator
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise UserError(
            f"estimator must be the name of one, or a callable (z, q) -> q', got {estimator!r}; "
            f"{did_you_mean(str(estimator), ESTIMATORS)}"
        )
    return ESTIMATORS[estimator]


def keyword_names(estimator: Estimator) -> frozenset[str]:
    """Return the names by which arguments can be passed to an estimator.

    Args:
      estimator: An estimator, or a ``functools.partial`` of one.

    Returns:
      The names of all parameters; those that a partial sets are included.

    Example:
      >>> sorted(keyword_names(noise_substitution))
      ['key', 'q', 'z']
    """
    return frozenset(inspect.signature(estimator).parameters)


def chooses_codes(estimator: Estimator) -> bool:
    """Return whether an estimator receives the codebook and chooses the codes itself.

    Args:
      estimator: An estimator.

    Returns:
      True for estimators ``(z, codes, ...) -> (q', indices)``.

    Example:
      >>> chooses_codes(gumbel_softmax), chooses_codes(rotation)
      (True, False)
    """
    return "codes" in keyword_names(estimator)
