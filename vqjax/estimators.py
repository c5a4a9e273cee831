r"""How the gradient crosses the quantizer.

An estimator is a function ``(z, q) -> q'`` of encoder vectors ``z`` and their chosen codes ``q``. Its value is
``q``, bit for bit. What differs is the Jacobian with respect to ``z``, a linear map per token that is held
constant; no gradient reaches ``q``. With :math:`u = z/|z|` and :math:`\hat q = q/|q|`:

===================== ===============================================================
name                  Jacobian with respect to ``z``
===================== ===============================================================
straight_through      :math:`I`
rotation              :math:`(|q|/|z|)\, R`, with the rotation :math:`R u = \hat q`
rotation_unscaled     :math:`R`
rotation_normalized   :math:`(|q|/|z|)\, R\,(I - u u^T)`
reflection            :math:`(|q|/|z|)\, H`, with the reflection :math:`H u = \hat q`
===================== ===============================================================

A token for which such a map does not exist (a vector shorter than 1e-6, an antipodal pair for the rotations, a
parallel pair for the reflection) uses the identity, that is the straight-through gradient, so every gradient is
finite. All arithmetic of the maps is float32, whatever the dtype of the input.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.norms import SHORTEST, length_and_direction

Vectors = Float[Array, "*batch dim"]
Estimator = Callable[[Vectors, Vectors], Vectors]
"""A gradient estimator: ``(z, q) -> q'`` with the value of ``q`` and a gradient with respect to ``z``."""

_LinearMap = Callable[[Vectors, Vectors, Vectors], Vectors]

# Below this length of u + q̂ (or u - q̂) rounding leaves its direction with less than two correct digits.
_SHORTEST_SUM = 1e-5


def straight_through(z: Vectors, q: Vectors) -> Vectors:
    r"""The straight-through estimator: the gradient passes unchanged.

    .. math:: \partial q' / \partial z = I

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the gradient above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: straight_through(z, q)[1])(z).round(4))
      [0. 1.]

    Source: Bengio et al., 2013 (arXiv 1308.3432); van den Oord et al., 2017 (arXiv 1711.00937).
    """
    return _with_jacobian(lambda z, q, tangent: tangent, z, q)


def rotation(z: Vectors, q: Vectors) -> Vectors:
    r"""The rotation trick: the code is reached by a rotation and a rescaling that are held constant.

    .. math::
      q' = \lambda R z,\quad \lambda = |q|/|z|,\quad
      R = I - 2 w w^T + 2 \hat q u^T = (I - 2 w w^T)(I - 2 u u^T),\quad w = (u + \hat q)/|u + \hat q|

    The gradient keeps its angle to the vector it belongs to: the angle between the gradient at ``z`` and ``z``
    equals the angle between the gradient at ``q`` and ``q``. Cost: two inner products, no matrix.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the Jacobian :math:`\lambda R`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: rotation(z, q)[1])(z).round(4))
      [0.5 0. ]

    Source: Fifty et al., ICLR 2025 (arXiv 2410.06424), Algorithm 1 and Section 4.2.
    """
    return _with_jacobian(_scaled_rotation_map(norm_ratio), z, q)


def rotation_unscaled(z: Vectors, q: Vectors) -> Vectors:
    r"""The rotation trick without the rescaling: the gradient keeps its length.

    .. math:: \partial q' / \partial z = R

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the Jacobian :math:`R` of :func:`rotation`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: rotation_unscaled(z, q)[1])(z).round(4))
      [1. 0.]

    Source: Fifty et al., ICLR 2025, Tables 6 and 7 ("no rescale").
    """
    return _with_jacobian(_scaled_rotation_map(lambda z, q: jnp.ones_like(z[..., :1])), z, q)


def rotation_normalized(z: Vectors, q: Vectors) -> Vectors:
    r"""The rotation trick of the paper's VQGAN code, whose gradient has no radial part.

    There ``z`` is divided by its length, and that division is differentiated:
    :math:`q' = |q|\, R\, (z/|z|)`. The gradient is the one of :func:`rotation` projected onto the tangent
    space of the sphere through ``z``.

    .. math:: \partial q' / \partial z = (|q|/|z|)\, R\, (I - u u^T)

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(abs(jax.grad(lambda z: rotation_normalized(z, q)[1])(z)).round(4))
      [0. 0.]

    Source: the official code of Fifty et al., ICLR 2025, for Tables 3 and 4.
    """
    return _with_jacobian(_scaled_rotation_map(norm_ratio, radial=False), z, q)


def reflection(z: Vectors, q: Vectors) -> Vectors:
    r"""One Householder reflection and a rescaling: the rotation's mirror image, of determinant -1.

    .. math::
      \partial q' / \partial z = (|q|/|z|)\,(I - 2 w w^T),\quad w = (u - \hat q)/|u - \hat q|

    Kept for comparison: it flips the gradient along ``w`` where ``z`` is close to its code, which is where
    training converges.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: reflection(z, q)[1])(z).round(4))
      [0.5 0. ]

    Source: Fifty et al., ICLR 2025, Appendix A.8.
    """

    def reflect(z: Vectors, q: Vectors, tangent: Vectors) -> Vectors:
        z_length, u = length_and_direction(z)
        q_length, q_hat = length_and_direction(q)
        difference, w = length_and_direction(u - q_hat)
        exists = _exists(z_length, q_length, difference)
        mapped = norm_ratio(z, q) * (tangent - 2 * w * _inner(w, tangent))
        return jnp.where(exists, mapped, tangent)

    return _with_jacobian(reflect, z, q)


def scaled_rotation(scale: float | Callable[[Vectors, Vectors], Float[Array, "*batch 1"]]) -> Estimator:
    r"""The general family: a rotation times any scale.

    .. math:: \partial q' / \partial z = \gamma(z, q)\, R

    :func:`rotation` is the member :math:`\gamma = |q|/|z|`, :func:`rotation_unscaled` the member
    :math:`\gamma = 1`.

    Args:
      scale: A number, or a function of ``z`` and ``q`` (float32, ``[..., dim]``) that returns ``[..., 1]``.
        It is held constant, like the rotation.

    Returns:
      The estimator ``(z, q) -> q'``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: scaled_rotation(3.0)(z, q)[1])(z).round(4))
      [3. 0.]

    Source: Fifty et al., ICLR 2025, Appendix A.9.2.
    """
    if callable(scale):
        scale_of = scale
    else:

        def scale_of(z: Vectors, q: Vectors) -> Float[Array, "*batch 1"]:
            return jnp.full_like(z[..., :1], scale)

    return lambda z, q: _with_jacobian(_scaled_rotation_map(scale_of), z, q)


ESTIMATORS: dict[str, Estimator] = {
    "straight_through": straight_through,
    "rotation": rotation,
    "rotation_unscaled": rotation_unscaled,
    "rotation_normalized": rotation_normalized,
    "reflection": reflection,
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


def norm_ratio(z: Vectors, q: Vectors) -> Float[Array, "*batch 1"]:
    r"""The scale of the rotation trick, :math:`|q| / |z|`; one where either vector is too short.

    Args:
      z: Encoder vectors, any leading axes.
      q: The codes chosen for them, of the same shape.

    Returns:
      The ratio, float32, with a last axis of size one.

    Example:
      >>> import jax.numpy as jnp
      >>> print(norm_ratio(jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])))
      [0.5]
    """
    z_length, _ = length_and_direction(z)
    q_length, _ = length_and_direction(q)
    exists = _exists(z_length, q_length)
    return jnp.where(exists, q_length / jnp.where(exists, z_length, 1.0), 1.0)


def _scaled_rotation_map(
    scale: Callable[[Vectors, Vectors], Float[Array, "*batch 1"]], *, radial: bool = True
) -> _LinearMap:
    def rotate(z: Vectors, q: Vectors, tangent: Vectors) -> Vectors:
        z_length, u = length_and_direction(z)
        q_length, q_hat = length_and_direction(q)
        total, w = length_and_direction(u + q_hat)
        kept = tangent if radial else tangent - u * _inner(u, tangent)
        # Two reflections in sequence stay a rotation (orthogonal, determinant +1) however w is rounded.
        reflected = kept - 2 * u * _inner(u, kept)
        rotated = reflected - 2 * w * _inner(w, reflected)
        return jnp.where(_exists(z_length, q_length, total), scale(z, q) * rotated, tangent)

    return rotate


def _exists(
    z_length: Float[Array, "*batch 1"],
    q_length: Float[Array, "*batch 1"],
    axis_length: Float[Array, "*batch 1"] | None = None,
) -> Array:
    exists = (z_length >= SHORTEST) & (q_length >= SHORTEST)
    return exists if axis_length is None else exists & (axis_length >= _SHORTEST_SUM)


def _inner(x: Vectors, y: Vectors) -> Float[Array, "*batch 1"]:
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _with_jacobian(linear_map: _LinearMap, z: Vectors, q: Vectors) -> Vectors:
    """Returns ``q`` with ``linear_map(z, q, .)`` as its derivative with respect to ``z``.

    A custom derivative rather than ``q + mapped - stop_gradient(mapped)``: that sum rounds, and the value has to
    be the code bit for bit. The map costs nothing where no gradient is taken.
    """

    @jax.custom_jvp
    def value(z: Vectors, q: Vectors) -> Vectors:
        return q

    @value.defjvp
    def derivative(primals: tuple[Vectors, Vectors], tangents: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
        z, q = primals
        constant = jax.lax.stop_gradient((z.astype(jnp.float32), q.astype(jnp.float32)))
        mapped = linear_map(*constant, tangents[0].astype(jnp.float32))
        return q, mapped.astype(q.dtype)

    return value(z, q)
