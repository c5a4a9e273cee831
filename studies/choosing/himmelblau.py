"""Gradient descent of points on Himmelblau's function, evaluated only at their codes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from studies.choosing.surfaces import reaching_gradient
from vqjax.functional.codebook import Codebook, assign, ema_update, init_codebook
from vqjax.functional.search import nearest_codes

Points = Float[Array, "points 2"]
Codes = Float[Array, "codes 2"]

HALF_WIDTH = 5.0
MINIMA = ((3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848127))


class Setting(NamedTuple):
    """Settings of all descents.

    Steps, learning rate and decay are those of Figures 7 and 8 of the rotation trick's paper.

    Attributes:
      steps: Gradient steps of the points.
      learning_rate: Learning rate of plain gradient descent; each point follows its own gradient.
      decay: Decay of the codebook's moving averages.
      num_points: Points, uniform on ``[-5, 5]`` squared.
      num_codes: Codes, uniform on the same square.
      seeds: Random starts; the same for every estimator.
      snapshot_every: Steps between the recorded positions of the first seed.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    decay: float = 0.8
    num_points: int = 64
    num_codes: int = 16
    seeds: int = 20
    snapshot_every: int = 2


class Position(NamedTuple):
    """Points and their codebook."""

    points: Points
    codebook: Codebook


def himmelblau(p: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    r"""Evaluate Himmelblau's function, which has four minima of value zero.

    .. math:: f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2

    Args:
      p: Points of the plane.

    Returns:
      Values of at least zero.

    Example:
      >>> float(himmelblau(jnp.array([3.0, 2.0])))
      0.0
    """
    x, y = p[..., 0], p[..., 1]
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def start(seed: Int[Array, ""] | int, setting: Setting) -> Position:
    """Draw random points and codes.

    Args:
      seed: The only source of randomness.
      setting: Numbers of points and codes.

    Returns:
      The position before the first step.
    """
    points_key, codes_key = jax.random.split(jax.random.key(seed))
    box = {"minval": -HALF_WIDTH, "maxval": HALF_WIDTH}
    points = jax.random.uniform(points_key, (setting.num_points, 2), **box)
    return Position(points, init_codebook(jax.random.uniform(codes_key, (setting.num_codes, 2), **box)))


def step(name: str, position: Position, key: Array, setting: Setting) -> Position:
    """Move the points against the gradient that reaches them, and update the codebook.

    Args:
      name: Name of the estimator, see :func:`studies.choosing.surfaces.reaching_gradient`.
      position: Position before the step.
      key: Random key for estimators that draw noise.
      setting: Learning rate and decay.

    Returns:
      Position after the step. The codebook moves towards the points as they were at the lookup.
    """
    points, codebook = position
    gradient = reaching_gradient(name, himmelblau, points, codebook.codes, key)
    batch = assign(points, nearest_codes(points, codebook.codes), setting.num_codes)
    return Position(points - setting.learning_rate * gradient, ema_update(codebook, batch, decay=setting.decay))


def measure_descent(name: str, setting: Setting) -> dict[str, Any]:
    """Descend from the start of every seed.

    Args:
      name: Name of the estimator.
      setting: Settings of the descents.

    Returns:
      One number per seed: ``value_at_points`` and ``value_at_codes`` (means over the points, at the end),
      ``quantization_error`` (mean squared distance of a point to its code, per dimension) and ``codes_used``. For
      the first seed also ``points`` and ``codes``, the positions every ``snapshot_every`` steps.
    """

    def descend(
        seed: Int[Array, ""],
    ) -> tuple[Position, tuple[Float[Array, "steps points 2"], Float[Array, "steps codes 2"]]]:
        def body(position: Position, key: Array) -> tuple[Position, tuple[Points, Codes]]:
            moved = step(name, position, key, setting)
            return moved, (moved.points, moved.codebook.codes)

        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), setting.steps)
        return jax.lax.scan(body, start(seed, setting), keys)

    final, (points, codes) = jax.jit(jax.vmap(descend))(jnp.arange(setting.seeds))
    first = start(0, setting)
    snapshots = slice(setting.snapshot_every - 1, None, setting.snapshot_every)
    return jax.vmap(_measure)(final) | {
        "points": jnp.concatenate([first.points[None], points[0, snapshots]]),
        "codes": jnp.concatenate([first.codebook.codes[None], codes[0, snapshots]]),
    }


def _measure(position: Position) -> dict[str, Float[Array, ""]]:
    points, codes = position.points, position.codebook.codes
    indices = nearest_codes(points, codes)
    counts = jnp.zeros(len(codes)).at[indices].add(1.0)
    return {
        "value_at_points": jnp.mean(himmelblau(points)),
        "value_at_codes": jnp.mean(himmelblau(codes[indices])),
        "quantization_error": jnp.mean(jnp.square(points - codes[indices])),
        "codes_used": jnp.sum(counts > 0),
    }
