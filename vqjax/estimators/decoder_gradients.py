"""Baseline gradients computed from the decoder's loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vqjax.estimators.jacobian import Vectors, with_gradient_of

DecoderLoss = Callable[[PyTree, Vectors], tuple[Float[Array, ""], Any]]
"""Function ``(params, vectors) -> (loss, auxiliary)`` of the decoder's parameters and the vectors it decodes."""


def exact_gradient(decoder_loss: DecoderLoss, params: PyTree, y: Vectors, q: Vectors) -> tuple[Float[Array, ""], Any]:
    r"""Compute the loss at the codes, with the encoder's gradient taken at its latents.

    .. math:: L = L(q),\quad \partial L/\partial\theta = \nabla_\theta L(q),\quad \partial L/\partial y = \nabla L(y)

    Costs a second pass through the decoder.

    Args:
      decoder_loss: Function ``(params, vectors) -> (loss, auxiliary)``.
      params: Parameters of the decoder.
      y: Latents.
      q: The codes assigned to them, of the same shape.

    Returns:
      The value of ``decoder_loss(params, q)``, with the gradients above; none reaches ``q``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda scale, x: (scale * jnp.sum(x**2), None)
      >>> y, q = jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0])
      >>> print(jax.grad(lambda y: exact_gradient(loss, 1.0, y, q)[0])(y))
      [2. 4.]

    Source: Fifty et al., ICLR 2025, Table 1 ("exact gradients").
    """
    at_codes, auxiliary = decoder_loss(params, jax.lax.stop_gradient(q))
    at_vectors, _ = decoder_loss(jax.lax.stop_gradient(params), y)
    return with_gradient_of(at_codes, at_codes + at_vectors), auxiliary


def hessian_gradient(decoder_loss: DecoderLoss, params: PyTree, y: Vectors, q: Vectors) -> tuple[Float[Array, ""], Any]:
    r"""Compute the loss at the codes, with the encoder's gradient extrapolated from there by the Hessian.

    .. math:: \partial L/\partial y = \nabla L(q) + \nabla^2 L(q)\,(y - q)

    Costs one Hessian-vector product of the decoder.

    Args:
      decoder_loss: Function ``(params, vectors) -> (loss, auxiliary)``.
      params: Parameters of the decoder.
      y: Latents.
      q: The codes assigned to them, of the same shape.

    Returns:
      The value of ``decoder_loss(params, q)``, with the gradient above for ``y`` and that at ``q`` for ``params``; none
      reaches ``q``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda scale, x: (scale * jnp.sum(x**3), None)
      >>> y, q = jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0])
      >>> print(jax.grad(lambda y: hessian_gradient(loss, 1.0, y, q)[0])(y))
      [0. 9.]

    Source: Fifty et al., ICLR 2025, Table 1 ("Hessian approximation").
    """
    constant, y_constant, q = jax.lax.stop_gradient((params, y, q))
    at_codes, auxiliary = decoder_loss(params, q)
    gradient = jax.grad(lambda vectors: decoder_loss(constant, vectors)[0])
    at_q, change = jax.jvp(gradient, (q,), ((y_constant - q).astype(q.dtype),))
    # Linear in `y`, with the extrapolated gradient as its slope.
    slope = jax.lax.stop_gradient(at_q + change)
    return with_gradient_of(at_codes, at_codes + jnp.sum(slope * y)), auxiliary
