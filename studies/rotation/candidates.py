"""Estimators that are tried here, and are not in the package."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from vqjax.estimators import ESTIMATORS, Estimator, dynamic_straight_through, scaled_rotation
from vqjax.estimators.jacobian import Vectors, with_gradient_of
from vqjax.functional import length_and_direction, norm_ratio
from vqjax.functional.geometry import inner


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


CANDIDATES: dict[str, Estimator] = {
    "half_tangential_rotation": with_radial_part(_halfway),
    "tangential_rotation_inverse": with_radial_part(
        scaled_rotation(lambda z, q: 1 / jnp.maximum(norm_ratio(z, q), 0.2))
    ),
    "dynamic_tangential_rotation": _weighted,
}
"""By name: half of the angle; the tangential part divided by the ratio of lengths, which is a cosine for codes that are
means; and the weights of the dynamic straight-through estimator."""


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
