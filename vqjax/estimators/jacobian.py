"""A value with a chosen derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Vectors = Float[Array, "*batch dim"]
Estimator = Callable[..., Any]
"""A gradient estimator: ``(z, q) -> q'``, see :mod:`vqjax.estimators`."""

LinearMap = Callable[[Vectors, Vectors, Vectors], Vectors]


def with_jacobian(linear_map: LinearMap, z: Vectors, q: Vectors) -> Vectors:
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


def with_gradient_of(value: Vectors, carrier: Vectors) -> Vectors:
    """Returns ``value`` bit for bit, with the derivative of ``carrier``."""

    @jax.custom_jvp
    def take(value: Vectors, carrier: Vectors) -> Vectors:
        return value

    @take.defjvp
    def derivative(primals: tuple[Vectors, Vectors], tangents: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
        return primals[0], tangents[1].astype(primals[0].dtype)

    return take(value, carrier)


def length(x: Vectors) -> Float[Array, "*batch 1"]:
    """Euclidean length whose gradient at the zero vector is zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
