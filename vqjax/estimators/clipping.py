"""A bound on how much an estimator may amplify."""

import functools
import math
import numbers

import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Estimator, Vectors, with_scaled_gradient
from vqjax.estimators.registry import ESTIMATORS, chooses_codes, get_estimator
from vqjax.functional.geometry import norm_ratio

_SCALING = ("rotation", "rotation_normalized", "reflection")


def clip_norm_ratio(estimator: str | Estimator, max_ratio: float) -> Estimator:
    r"""Bounds the factor :math:`|q|/|z|` of an estimator that scales gradients by it.

    Short encoder vectors with long codes have their gradient amplified without bound; this keeps the direction and
    limits the factor.

    .. math:: \partial q'/\partial z = \min(1,\ m\,|z|/|q|)\; J

    Args:
      estimator: ``"rotation"``, ``"rotation_normalized"``, ``"reflection"``, or a callable whose Jacobian :math:`J`
        is proportional to :math:`|q|/|z|`.
      max_ratio: :math:`m`, the largest factor, above 0.

    Returns:
      The estimator, of the same value.

    Raises:
      UserError: ``max_ratio`` is out of range, or the estimator does not scale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([0.1, 0.0]), jnp.array([1.0, 0.0])
      >>> clipped = clip_norm_ratio("rotation", 2.0)
      >>> print(jax.grad(lambda z: clipped(z, q)[0])(z).round(4))
      [2. 0.]
    """
    if not isinstance(max_ratio, numbers.Real) or isinstance(max_ratio, bool) or not 0 < max_ratio < math.inf:
        raise UserError(f"max_ratio={max_ratio!r} is not allowed: use a finite number above 0, such as 1.0.")
    inner = get_estimator(estimator)
    _check_that_it_scales(inner)

    @functools.wraps(inner)
    def clipped(z: Vectors, q: Vectors, **context) -> Vectors:
        ratio = norm_ratio(z, q)
        factor = jnp.minimum(1.0, max_ratio / jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny))
        return inner(with_scaled_gradient(z, factor), q, **context)

    return clipped


def _check_that_it_scales(estimator: Estimator) -> None:
    bare = estimator
    while isinstance(bare, functools.partial):
        bare = bare.func
    name = next((name for name, named in ESTIMATORS.items() if named is bare), None)
    unscaled = chooses_codes(estimator) if name is None else name not in _SCALING
    if unscaled:
        raise UserError(
            f"estimator={name or estimator!r} does not scale by |q|/|z|: use one of {', '.join(_SCALING)}, "
            "or a callable (z, q) -> q' that does."
        )
