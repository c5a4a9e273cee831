"""Estimators that are tried here, and are not in the package."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.estimators import ESTIMATORS, Estimator, diveq_detached, dynamic_straight_through, scaled_rotation
from vqjax.estimators.jacobian import Vectors, with_gradient_of
from vqjax.functional import length_and_direction, norm_ratio
from vqjax.functional.geometry import inner
from vqjax.functional.metrics import index_statistics
from vqjax.functional.numbers import Number

Indices = Int[Array, "*batch"]

_LEAST_RATIO = 0.2


def with_radial_part(estimator: Estimator) -> Estimator:
    r"""Let the radial part of the gradient pass straight through, :math:`J (I - u u^T) + u u^T`.

    Args:
      estimator: Of the Jacobian :math:`J`.
    """

    def estimate(z: Vectors, q: Vectors, **settings: object) -> Vectors:
        constant = jax.lax.stop_gradient(z)
        direction = length_and_direction(constant)[1]
        along = direction * inner(direction, z - constant)
        return with_gradient_of(q, estimator(z - along, q, **settings) + along)

    return estimate


def _halfway(z: Vectors, q: Vectors) -> Vectors:
    """Rotate by half of the angle."""
    middle = length_and_direction(z)[1] + length_and_direction(q)[1]
    return with_gradient_of(q, scaled_rotation(1.0)(z, jax.lax.stop_gradient(middle)))


def _weighted(
    z: Vectors,
    q: Vectors,
    *,
    indices: jax.Array,
    num_codes: int,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
) -> Vectors:
    """Rotate, and weight by how close each latent is to its code."""
    rotated = with_radial_part(scaled_rotation(1.0))
    settings = {"indices": indices, "num_codes": num_codes, "mask": mask, "axis_name": axis_name}
    weighted = with_gradient_of(z, dynamic_straight_through(z, q, **settings))
    return rotated(weighted, q)


def _partly_diveq(z: Vectors, q: Vectors, share: Number) -> Vectors:
    """Leave out a share of the gradient along the quantization error, of which DiVeQ leaves out all."""
    return with_gradient_of(q, (1 - share) * z + share * diveq_detached(z, q))


def _damped(z: Vectors, q: Vectors, share: Number) -> Vectors:
    """Return the latents, without a share of their gradient along the quantization error."""
    return with_gradient_of(jax.lax.stop_gradient(z), _partly_diveq(z, q, share))


def _tangential_half_diveq(z: Vectors, q: Vectors) -> Vectors:
    """Rotate what half of DiVeQ leaves of the gradient, but for its radial part."""
    rotated = with_radial_part(scaled_rotation(1.0))
    return with_gradient_of(q, rotated(_damped(z, q, 0.5), jax.lax.stop_gradient(q)))


def _use(indices: Indices, num_codes: int, full: float) -> Float[Array, ""]:
    """Return the perplexity of a batch over the most that it could be, and one from the share ``full`` on."""
    perplexity = index_statistics(indices, num_codes)["perplexity"]
    return jnp.minimum(perplexity / (full * min(num_codes, indices.size)), 1.0)


def _rotation_of_unused(z: Vectors, q: Vectors, used: Float[Array, ""]) -> Vectors:
    """Rotate by the share of the angle that the unused codes have, and divide by as much of the ratio of lengths."""
    middle = used * length_and_direction(jax.lax.stop_gradient(z))[1] + (1 - used) * length_and_direction(q)[1]
    inverse = scaled_rotation(lambda z, _: (1 / jnp.maximum(norm_ratio(z, q), _LEAST_RATIO)) ** (1 - used))
    return with_gradient_of(q, with_radial_part(inverse)(z, jax.lax.stop_gradient(middle)))


def _rotation_by_use(z: Vectors, q: Vectors, *, indices: Indices, num_codes: int) -> Vectors:
    """Turn from the inverse tangential rotation to straight-through while codes come into use."""
    return _rotation_of_unused(z, q, _use(indices, num_codes, 1.0))


def _rotation_then_half_diveq(z: Vectors, q: Vectors, *, indices: Indices, num_codes: int) -> Vectors:
    """Turn from the inverse tangential rotation to half of DiVeQ while codes come into use."""
    used = _use(indices, num_codes, 0.7)
    return with_gradient_of(q, _rotation_of_unused(_damped(z, q, used / 2), q, used))


CANDIDATES: dict[str, Estimator] = {
    "half_tangential_rotation": with_radial_part(_halfway),
    "tangential_rotation_inverse": with_radial_part(
        scaled_rotation(lambda z, q: 1 / jnp.maximum(norm_ratio(z, q), _LEAST_RATIO))
    ),
    "dynamic_tangential_rotation": _weighted,
    "half_diveq": functools.partial(_partly_diveq, share=0.5),
    "tangential_half_diveq": _tangential_half_diveq,
    "rotation_by_use": _rotation_by_use,
    "rotation_then_half_diveq": _rotation_then_half_diveq,
}
"""By name: half of the angle; the tangential part divided by the ratio of lengths, which is a cosine for codes that are
means; the weights of the dynamic straight-through estimator; half of the gradient along the quantization error, alone
and in front of the tangential rotation; and the second of these, given up while codes come into use, for
straight-through and for the fourth."""


@contextlib.contextmanager
def known_candidates() -> Iterator[None]:
    """Let configs name the candidates."""
    added = {name: estimator for name, estimator in CANDIDATES.items() if name not in ESTIMATORS}
    ESTIMATORS.update(added)
    try:
        yield
    finally:
        for name in added:
            del ESTIMATORS[name]
