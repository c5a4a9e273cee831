"""Estimators by name, and what they ask for."""

import inspect

from vqjax.errors import UserError
from vqjax.estimators.diveq import diveq, diveq_detached, noise_substitution, space_filling_diveq
from vqjax.estimators.gumbel_softmax import gumbel_softmax
from vqjax.estimators.jacobian import Estimator
from vqjax.estimators.rotation import reflection, rotation, rotation_normalized, rotation_unscaled
from vqjax.estimators.straight_through import dynamic_straight_through, straight_through

ESTIMATORS: dict[str, Estimator] = {
    "straight_through": straight_through,
    "rotation": rotation,
    "rotation_unscaled": rotation_unscaled,
    "rotation_normalized": rotation_normalized,
    "reflection": reflection,
    "dynamic_straight_through": dynamic_straight_through,
    "diveq": diveq,
    "diveq_detached": diveq_detached,
    "space_filling_diveq": space_filling_diveq,
    "noise_substitution": noise_substitution,
    "gumbel_softmax": gumbel_softmax,
}
"""The estimators that have a name."""


def get_estimator(estimator: str | Estimator) -> Estimator:
    """Looks an estimator up by name; a callable is returned as it is.

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
            f"estimator={estimator!r} is unknown: use one of {', '.join(ESTIMATORS)}, or pass a callable (z, q) -> q'."
        )
    return ESTIMATORS[estimator]


def keyword_names(estimator: Estimator) -> frozenset[str]:
    """What an estimator takes besides the vectors, by name; settings that a partial has fixed included.

    Args:
      estimator: The callable.

    Returns:
      The names of its parameters.

    Example:
      >>> sorted(keyword_names(noise_substitution))
      ['key', 'q', 'z']
    """
    return frozenset(inspect.signature(estimator).parameters)


def chooses_codes(estimator: Estimator) -> bool:
    """Whether an estimator is given the codebook and chooses the codes itself.

    Args:
      estimator: The callable.

    Returns:
      True for ``(z, codes, ...) -> (q', indices)``.

    Example:
      >>> chooses_codes(gumbel_softmax), chooses_codes(rotation)
      (True, False)
    """
    return "codes" in keyword_names(estimator)
