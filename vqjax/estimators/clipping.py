"""Clipping of the gradient scale of an estimator."""

import functools

import jax
import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Estimator, Vectors, with_scaled_gradient
from vqjax.estimators.registry import ESTIMATORS, chooses_codes, get_estimator
from vqjax.functional.geometry import norm_ratio
from vqjax.functional.numbers import Number, is_positive

_SCALED_BY_NORM_RATIO = ("rotation", "rotation_normalized", "reflection")


def clip_norm_ratio(estimator: str | Estimator, max_ratio: Number) -> Estimator:
    r"""Clip the factor :math:`|q|/|z|` of an estimator that scales gradients by it.

    The gradient of a short latent with a long code is amplified without bound; clipping keeps its direction and limits
    the factor.

    .. math:: \partial q'/\partial z = \min(1,\ m\,|z|/|q|)\; J

    Args:
      estimator: ``"rotation"``, ``"rotation_normalized"``, ``"reflection"``, or a callable whose Jacobian :math:`J`
        is proportional to :math:`|q|/|z|`.
      max_ratio: :math:`m`, the largest factor, above 0.

    Returns:
      The clipped estimator, of the same value.

    Raises:
      UserError: ``max_ratio`` is out of range, or the estimator does not scale by :math:`|q|/|z|`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([0.1, 0.0]), jnp.array([1.0, 0.0])
      >>> clipped = clip_norm_ratio("rotation", 2.0)
      >>> print(jax.grad(lambda z: clipped(z, q)[0])(z).round(4))
      [2. 0.]
    """
    if not is_positive(max_ratio):
        raise UserError(f"max_ratio must be a finite number above 0, got {max_ratio!r}; use 1.0 to never amplify.")
    inner = get_estimator(estimator)
    _check_scales(inner)

    @functools.wraps(inner)
    def clipped(z: Vectors, q: Vectors, **context) -> Vectors:
        ratio = norm_ratio(*jax.lax.stop_gradient((z, q)))
        # The inner estimator scales by `ratio`, so this factor leaves `min(ratio, max_ratio)` of it.
        factor = jnp.minimum(1.0, max_ratio / jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny))
        return inner(with_scaled_gradient(z, factor), q, **context)

    return clipped


def _check_scales(estimator: Estimator) -> None:
    """Refuse the named estimators without the factor, and those that choose codes; other callables are trusted."""
    bare = estimator
    while isinstance(bare, functools.partial):
        bare = bare.func
    name = next((name for name, named in ESTIMATORS.items() if named is bare), None)
    unscaled = chooses_codes(estimator) if name is None else name not in _SCALED_BY_NORM_RATIO
    if unscaled:
        raise UserError(
            f"estimator must scale gradients by |q|/|z|, got {name or estimator!r}; use one of "
            f"{', '.join(_SCALED_BY_NORM_RATIO)}, or a callable (z, q) -> q' that does."
        )
