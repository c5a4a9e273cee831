"""Gradient fields: the gradient that each estimator passes to points of the plane."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.estimators import chooses_codes, get_estimator, keyword_names
from vqjax.functional.search import nearest_codes
from vqjax.tasks.decoder_gradient import DECODER_GRADIENTS

Points = Float[Array, "points 2"]
Codes = Float[Array, "codes 2"]

# Even: an odd grid would contain the origin, where the logarithm is not defined.
GRID_SIDE = 16
DRAWS = 256
_CODES_PER_SIDE = 4
_JITTER = 0.35
_SEED = 4
# A shorter gradient is rounding error and has no direction.
SHORTEST = 1e-5


class Surface(NamedTuple):
    """A function of the plane.

    Attributes:
      title: Its formula, as matplotlib's mathtext.
      value: From points to values.
      half_width: Half the side of the square, which is centered on the origin.
    """

    title: str
    value: Callable[[Float[Array, "*batch 2"]], Float[Array, "*batch"]]
    half_width: float


SURFACES = {
    "quadratic": Surface("$f = x^2 + y^2$", lambda p: p[..., 0] ** 2 + p[..., 1] ** 2, 2.0),
    "logarithm": Surface(
        r"$f = \log\,|x/2 + \tanh(y)|$", lambda p: jnp.log(jnp.abs(p[..., 0] / 2 + jnp.tanh(p[..., 1]))), 2.0
    ),
}
"""The two functions of the rotation paper's Figures 2 and 14."""


def fixed_codes(half_width: float) -> Codes:
    """Return sixteen codes, one at a random place in each cell of a 4 x 4 grid.

    Args:
      half_width: Half the side of the square that the codes cover.

    Returns:
      The codes, the same in every call.

    Example:
      >>> fixed_codes(2.0).shape
      (16, 2)
    """
    cell = 2 * half_width / _CODES_PER_SIDE
    middles = -half_width + cell * (np.arange(_CODES_PER_SIDE) + 0.5)
    grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    jitter = np.random.default_rng(_SEED).uniform(-_JITTER, _JITTER, grid.shape)
    return jnp.asarray(grid + cell * jitter, jnp.float32)


def grid_points(half_width: float, side: int = GRID_SIDE) -> Points:
    """Return the centers of ``side * side`` equal cells of the square, row by row.

    Args:
      half_width: Half the side of the square.
      side: Points per row.

    Returns:
      The points.

    Example:
      >>> grid_points(2.0, side=2).tolist()
      [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """
    middles = half_width * ((2 * np.arange(side) + 1) / side - 1)
    return jnp.asarray(np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2), jnp.float32)


def reaching_gradient(
    name: str, value: Callable[[Points], Float[Array, " points"]], z: Points, codes: Codes, key: Array
) -> Points:
    """Compute the gradient that reaches points when a function is evaluated at their codes.

    Args:
      name: Name of an estimator, or of a gradient that needs the function itself (``"exact"``, ``"hessian"``).
      value: The function.
      z: The points, as one batch.
      codes: The codebook.
      key: Random key for estimators that draw noise.

    Returns:
      One gradient per point.

    Example:
      >>> import jax
      >>> z, codes = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 5.0]])
      >>> square = SURFACES["quadratic"].value
      >>> reaching_gradient("straight_through", square, z, codes, jax.random.key(0)).tolist()
      [[2.0, 0.0]]
      >>> reaching_gradient("exact", square, z, codes, jax.random.key(0)).tolist()
      [[4.0, 0.0]]
    """

    def total(z: Points) -> Float[Array, ""]:
        if name not in DECODER_GRADIENTS:
            return jnp.sum(value(_quantized(name, z, codes, key)))
        loss = lambda params, vectors: (jnp.sum(value(vectors)), None)  # noqa: E731
        return DECODER_GRADIENTS[name](loss, {}, z, codes[nearest_codes(z, codes)])[0]

    return jax.grad(total)(z)


def measure_field(name: str, surface: Surface) -> dict[str, Any]:
    """Measure the gradient field of one estimator on one surface, averaged over draws of its noise.

    Args:
      name: See :func:`reaching_gradient`.
      surface: The function.

    Returns:
      ``points``, ``codes``, ``gradient`` (one row per point) and, over the points, ``cosine`` (mean cosine to the
      function's own gradient at the point) and ``descends`` (share of points where a small step against the
      gradient lowers the function at the point).
    """
    z, codes = grid_points(surface.half_width), fixed_codes(surface.half_width)
    keys = jax.random.split(jax.random.key(_SEED), DRAWS)
    draw = lambda key: reaching_gradient(name, surface.value, z, codes, key)  # noqa: E731
    gradient = jnp.mean(jax.jit(jax.vmap(draw))(keys), axis=0)
    own = jax.grad(lambda z: jnp.sum(surface.value(z)))(z)
    cosine = _cosine(gradient, own)
    return {
        "points": z,
        "codes": codes,
        "gradient": gradient,
        "cosine": jnp.mean(cosine),
        "descends": jnp.mean(cosine > 0),
    }


def _quantized(name: str, z: Points, codes: Codes, key: Array) -> Points:
    estimator = get_estimator(name)
    names = keyword_names(estimator)
    settings = {"key": key, "num_codes": len(codes)}
    if chooses_codes(estimator):
        return estimator(z, codes, **{name: value for name, value in settings.items() if name in names})[0]
    settings["indices"] = nearest_codes(z, codes)
    chosen = codes[settings["indices"]]
    return estimator(z, chosen, **{name: value for name, value in settings.items() if name in names})


def _cosine(x: Points, y: Points) -> Float[Array, " points"]:
    x_length, y_length = jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(y, axis=-1)
    return jnp.where(x_length < SHORTEST, 0.0, jnp.sum(x * y, axis=-1) / (x_length * y_length))
