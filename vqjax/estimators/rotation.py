"""The rotation trick and its variants."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.estimators.jacobian import Estimator, LinearMap, Vectors, with_gradient_of, with_jacobian
from vqjax.functional.affine import feature_statistics
from vqjax.functional.geometry import inner, map_exists, norm_ratio
from vqjax.functional.norms import length_and_direction
from vqjax.functional.numbers import Number
from vqjax.functional.sharding import with_automatic_axes


def rotation(z: Vectors, q: Vectors) -> Vectors:
    r"""Apply the rotation trick: the code is reached by a rotation and a rescaling that are held constant.

    .. math::
      q' = \lambda R z,\quad \lambda = |q|/|z|,\quad
      R = I - 2 w w^T + 2 \hat q u^T = (I - 2 w w^T)(I - 2 u u^T),\quad w = (u + \hat q)/|u + \hat q|

    The gradient keeps its angle to the vector: the angle between ``z`` and its gradient equals the angle between ``q``
    and its gradient. The map costs two reflections, and no matrix is formed.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobian :math:`\lambda R`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: rotation(z, q)[1])(z).round(4))
      [0.5 0. ]

    Source: Fifty et al., ICLR 2025 (arXiv 2410.06424), Algorithm 1 and Section 4.2.
    """
    return with_jacobian(_scaled_rotation_map(norm_ratio), z, q)


def rotation_unscaled(z: Vectors, q: Vectors) -> Vectors:
    r"""Apply the rotation trick without the rescaling: the gradient keeps its length.

    .. math:: \partial q' / \partial z = R

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobian :math:`R` of :func:`rotation`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: rotation_unscaled(z, q)[1])(z).round(4))
      [1. 0.]

    Source: Fifty et al., ICLR 2025, Tables 6 and 7 ("no rescale").
    """
    return with_jacobian(_scaled_rotation_map(_constant(1.0)), z, q)


def rotation_normalized(z: Vectors, q: Vectors) -> Vectors:
    r"""Apply the rotation trick of the paper's VQGAN code, whose gradient has no radial part.

    That code divides ``z`` by its length and differentiates the division, :math:`q' = |q|\, R\, (z/|z|)`. The gradient
    is that of :func:`rotation`, projected onto the tangent space of the sphere through ``z``.

    .. math:: \partial q' / \partial z = (|q|/|z|)\, R\, (I - u u^T)

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(abs(jax.grad(lambda z: rotation_normalized(z, q)[1])(z)).round(4))
      [0. 0.]

    Source: the official code of Fifty et al., ICLR 2025, for Tables 3 and 4.
    """
    return with_jacobian(_scaled_rotation_map(norm_ratio, radial="dropped"), z, q)


def tangential_rotation(z: Vectors, q: Vectors) -> Vectors:
    r"""Rotate the part of the gradient that is tangential to the latent, and pass its radial part straight through.

    .. math:: \partial q' / \partial z = R\,(I - u u^T) + u u^T

    With :func:`straight_through` the reconstruction loss pushes latents outward, by the loss that quantization costs,
    and the commitment loss pulls them inward, so that their length settles. The radial part of the gradient of
    :func:`rotation` is :math:`\langle q, g \rangle`, which has no such push: latents shrink, and with them the
    commitment loss. Here the radial part is that of straight-through, and the rest is rotated from the code to the
    latent.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: tangential_rotation(z, q) @ jnp.array([3.0, 5.0]))(z).round(4))
      [ 3. -3.]
    """
    return with_jacobian(_scaled_rotation_map(_constant(1.0), radial="straight_through"), z, q)


def tangential_rotation_rescaled(z: Vectors, q: Vectors) -> Vectors:
    r"""Apply :func:`tangential_rotation` with the rescaling of :func:`rotation` in the tangential part.

    .. math:: \partial q' / \partial z = (|q|/|z|)\, R\,(I - u u^T) + u u^T

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: tangential_rotation_rescaled(z, q) @ jnp.array([3.0, 5.0]))(z).round(4))
      [ 3.  -1.5]
    """
    return with_jacobian(_scaled_rotation_map(norm_ratio, radial="straight_through"), z, q)


@with_automatic_axes(like="z")
def rotation_about_mean(
    z: Vectors,
    q: Vectors,
    *,
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> Vectors:
    r"""Apply the rotation trick about the means of latents and codes in place of the origin.

    .. math:: \partial q' / \partial z = \lambda R \quad\text{of}\quad z - E[z],\ q - E[q]

    with means over the tokens. The nearest code depends on no origin, but :func:`rotation` does: for latents far from
    it all angles are small, and the map is nearly the identity. Codes have a mean of their own, as they may start
    elsewhere: seen from the mean of the latents, all of them would lie on one side.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split.

    Returns:
      ``q``, with the Jacobian above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([[6.0, 4.0], [2.0, 4.0]]), jnp.array([[9.0, 8.0], [9.0, 6.0]])
      >>> print(jax.grad(lambda z: rotation_about_mean(z, q)[0, 1])(z).round(4))  # (2, 0) turns to (0, 1)
      [[0.5 0. ]
       [0.  0. ]]
    """
    valid = None if mask is None else mask.reshape(-1)

    def centered(x: Vectors) -> Vectors:
        mean = feature_statistics(jax.lax.stop_gradient(x).reshape(-1, x.shape[-1]), valid, axis_name).mean
        return x - jnp.broadcast_to(mean, x.shape)

    return with_gradient_of(q, with_jacobian(_scaled_rotation_map(norm_ratio), centered(z), centered(q)))


def scaled_rotation(scale: Number | Callable[[Vectors, Vectors], Float[Array, "*batch 1"]]) -> Estimator:
    r"""Make an estimator of the general family, a rotation times any scale.

    .. math:: \partial q' / \partial z = \gamma(z, q)\, R

    :func:`rotation` is the member :math:`\gamma = |q|/|z|`, :func:`rotation_unscaled` the member
    :math:`\gamma = 1`.

    Args:
      scale: :math:`\gamma`, a number, or a function of ``z`` and ``q`` (float32, ``[..., dim]``) that returns
        ``[..., 1]``. It is held constant, like the rotation.

    Returns:
      The estimator ``(z, q) -> q'``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: scaled_rotation(3.0)(z, q)[1])(z).round(4))
      [3. 0.]

    Source: Fifty et al., ICLR 2025, Appendix A.9.2.
    """
    scale_of = scale if callable(scale) else _constant(scale)
    return lambda z, q: with_jacobian(_scaled_rotation_map(scale_of), z, q)


def _constant(scale: Number) -> Callable[[Vectors, Vectors], Float[Array, "*batch 1"]]:
    return lambda z, q: jnp.full_like(z[..., :1], scale)


def _scaled_rotation_map(
    scale: Callable[[Vectors, Vectors], Float[Array, "*batch 1"]],
    *,
    radial: Literal["rotated", "dropped", "straight_through"] = "rotated",
) -> LinearMap:
    """Return the Jacobian of the rotation trick as a map of tangents, and what it does to their part along z."""

    def rotate(z: Vectors, q: Vectors, tangent: Vectors) -> Vectors:
        z_length, u = length_and_direction(z)
        q_length, q_hat = length_and_direction(q)
        total, w = length_and_direction(u + q_hat)
        along = u * inner(u, tangent)
        kept = tangent if radial == "rotated" else tangent - along
        # Two reflections in sequence stay a rotation (orthogonal, determinant +1) however w is rounded.
        reflected = kept - 2 * u * inner(u, kept)
        rotated = reflected - 2 * w * inner(w, reflected)
        mapped = scale(z, q) * rotated + (along if radial == "straight_through" else 0.0)
        return jnp.where(map_exists(z_length, q_length, total), mapped, tangent)

    return rotate


def reflection(z: Vectors, q: Vectors) -> Vectors:
    r"""Apply one Householder reflection and a rescaling: the rotation's mirror image, of determinant -1.

    .. math::
      \partial q' / \partial z = (|q|/|z|)\,(I - 2 w w^T),\quad w = (u - \hat q)/|u - \hat q|

    For comparison: it flips the gradient along ``w`` when ``z`` is close to its code, which is where training leads.
    Like the rotation it takes ``z`` to ``q``, so that the radial part of its gradient is that of the code,
    :math:`\langle z, \nabla_z \rangle = \langle q, \nabla_q \rangle`.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

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
        exists = map_exists(z_length, q_length, difference)
        mapped = norm_ratio(z, q) * (tangent - 2 * w * inner(w, tangent))
        return jnp.where(exists, mapped, tangent)

    return with_jacobian(reflect, z, q)
