"""A bound on how much an estimator may amplify."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.estimators.geometry import norm_ratio
from vqjax.estimators.jacobian import Estimator, Vectors
from vqjax.estimators.registry import ESTIMATORS, get_estimator

_SCALING = ("rotation", "rotation_normalized", "reflection")


def clip_norm_ratio(estimator: str | Estimator, most: float) -> Estimator:
    r"""Bounds the factor :math:`|q|/|z|` of an estimator that scales gradients by it.

    Short encoder vectors with long codes have their gradient amplified without bound; this keeps the direction and
    limits the factor.

    .. math:: \partial q'/\partial z = \min(1,\ m\,|z|/|q|)\; J

    Args:
      estimator: ``"rotation"``, ``"rotation_normalized"``, ``"reflection"``, or a callable whose Jacobian :math:`J`
        is proportional to :math:`|q|/|z|`.
      most: :math:`m`, the largest factor, above 0.

    Returns:
      The estimator, of the same value.

    Raises:
      UserError: ``most`` is out of range, or the estimator does not scale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([0.1, 0.0]), jnp.array([1.0, 0.0])
      >>> clipped = clip_norm_ratio("rotation", 2.0)
      >>> print(jax.grad(lambda z: clipped(z, q)[0])(z).round(4))
      [2. 0.]
    """
    if not isinstance(most, numbers.Real) or isinstance(most, bool) or not 0 < most < math.inf:
        raise UserError(f"most={most!r} is not allowed: use a finite number above 0, such as 1.0.")
    inner = get_estimator(estimator)
    unscaled = [name for name, named in ESTIMATORS.items() if named is inner and name not in _SCALING]
    if unscaled:
        raise UserError(f"estimator={unscaled[0]!r} does not scale by |q|/|z|: use one of {', '.join(_SCALING)}.")

    @functools.wraps(inner)
    def clipped(z: Vectors, q: Vectors, **context) -> Vectors:
        ratio = jax.lax.stop_gradient(norm_ratio(z, q))
        factor = jnp.minimum(1.0, most / jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny)).astype(z.dtype)
        # The first term is the value, and the second, zero, the weighted gradient.
        constant = jax.lax.stop_gradient(z)
        return inner(constant + factor * (z - constant), q, **context)

    return clipped
