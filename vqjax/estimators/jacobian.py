"""Values with a chosen derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError

Vectors = Float[Array, "*batch dim"]
Estimator = Callable[..., Any]
"""A gradient estimator, ``(z, q) -> q'``; see :mod:`vqjax.estimators`."""

LinearMap = Callable[[Vectors, Vectors, Vectors], Vectors]


def with_jacobian(linear_map: LinearMap, z: Vectors, q: Vectors) -> Vectors:
    """Return ``q`` with ``linear_map(z, q, tangent)`` as its derivative with respect to ``z``.

    The derivative is a custom rule instead of ``q + mapped - stop_gradient(mapped)``: that sum rounds, and the value
    must be the code bit for bit. If no gradient is taken, the map costs nothing.

    Raises:
      UserError: ``z`` and ``q`` differ in shape, which a value without a gradient would not reveal.
    """
    if z.shape != q.shape:
        raise UserError(f"q must have the shape of z, {z.shape}, got {q.shape}; pass the code of each vector.")

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


def with_gradient_of(value: Float[Array, "*shape"], carrier: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``value`` bit for bit, with the derivative of ``carrier``."""

    @jax.custom_jvp
    def take(value: Array, carrier: Array) -> Array:
        return value

    @take.defjvp
    def derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        return primals[0], tangents[1].astype(primals[0].dtype)

    return take(value, carrier)


def with_scaled_gradient(x: Vectors, factor: Float[Array, "*batch 1"]) -> Vectors:
    """Return ``x`` in float32, with its gradient multiplied by ``factor``, which is held constant."""
    x = x.astype(jnp.float32)
    constant, factor = jax.lax.stop_gradient((x, factor))
    # The first term is the value; the second is zero and carries the gradient.
    return constant + factor * (x - constant)


def length(x: Vectors) -> Float[Array, "*batch 1"]:
    """Compute Euclidean lengths, differentiably for vectors of any size; the gradient at the zero vector is zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1.0)
    squared = jnp.sum(jnp.square(x / scale), axis=-1, keepdims=True)
    # Double `where`: the slope of the root at zero is infinite.
    return jnp.where(squared > 0, scale * jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
