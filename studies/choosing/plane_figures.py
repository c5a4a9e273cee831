"""Pictures of the plane: gradient fields over Voronoi regions, and descents on Himmelblau's function."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from studies.choosing import himmelblau
from studies.choosing.surfaces import SHORTEST, SURFACES, grid_points
from studies.common.plotting import BLUE, INK, ORANGE, matplotlib_module, new_figure
from studies.common.records import Record
from vqjax.functional.search import nearest_codes

_COLUMNS = 5
_PANEL_INCHES = 2.5
_REGION_SIDE = 320
_HEIGHTS_SIDE = 200
# Neighboring regions differ, no region stands out: a pastel per code, in an order that separates neighbors.
_PASTELS = ("#f3ede1", "#e3edf4", "#eaf3e6", "#f5e8ec", "#ece8f4", "#f4f1dd", "#e2f1ef", "#f3e6dd")

# No end is so pale that arrows drown in the pastels.
_SHORT_TO_LONG = ("#e59b3a", "#2a9d8f", "#1b2a6b")


def surface_figure(surface_name: str, records: Sequence[Record]) -> Any:
    """Draws one panel per estimator: regions, codes, and the steps that points would take.

    Args:
      surface_name: A key of ``SURFACES``.
      records: Of :func:`studies.choosing.surfaces.measure_field`, in the order of the panels.

    Returns:
      A matplotlib figure.
    """
    surface = SURFACES[surface_name]
    figure, axes = _panels(len(records))
    lengths = np.concatenate([_lengths(record) for record in records])
    lengths = lengths[lengths > SHORTEST]
    low, high = np.quantile(lengths, [0.02, 0.98])
    norm = matplotlib_module("colors").LogNorm(low, high)
    for axis, record in zip(axes, records, strict=True):
        _draw_regions(axis, np.asarray(record.measured["codes"]), surface.half_width)
        arrows = _draw_arrows(axis, record, norm)
        axis.set_title(record.settings["estimator"])
    bar = figure.colorbar(arrows, ax=axes, shrink=0.6, aspect=40, pad=0.02)
    bar.set_label("length of the gradient")
    figure.suptitle(f"Steps against the gradient that reaches z when {surface.title} is evaluated at its code")
    return figure


def himmelblau_figure(records: Sequence[Record]) -> Any:
    """Draws one panel per estimator: the paths of points and codes of the first seed.

    Args:
      records: Of :func:`studies.choosing.himmelblau.measure_descent`, in the order of the panels.

    Returns:
      A matplotlib figure.
    """
    figure, axes = _panels(len(records))
    for axis, record in zip(axes, records, strict=True):
        _draw_heights(axis)
        _draw_paths(axis, np.asarray(record.measured["points"]), np.asarray(record.measured["codes"]))
        values = [value for value in record.measured["value_at_points"] if value is not None]
        axis.set_title(f"{record.settings['estimator']}\nhere f(z) = {values[0]:.1f}" if values else "diverged")
    figure.suptitle(
        f"{records[0].settings['steps']} updates on Himmelblau's function: points from ring to dot, "
        "codes from cross to square, minima as stars"
    )
    return figure


def _panels(count: int) -> tuple[Any, Any]:
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure, axes = new_figure(columns * _PANEL_INCHES, rows * _PANEL_INCHES + 0.5, rows, columns)
    flat = axes.ravel()
    for axis in flat:
        axis.set(xticks=[], yticks=[], aspect="equal")
    for axis in flat[count:]:
        axis.remove()
    return figure, flat[:count]


def _draw_regions(axis: Any, codes: np.ndarray, half_width: float) -> None:
    points = grid_points(half_width, _REGION_SIDE)
    regions = np.asarray(nearest_codes(points, jnp.asarray(codes, jnp.float32)))
    regions = regions.reshape(_REGION_SIDE, _REGION_SIDE)
    palette = np.array([matplotlib_module("colors").to_rgb(color) for color in _PASTELS])
    # Codes lie row by row on a 4 x 4 grid; this order gives most neighbors different pastels.
    image = palette[(regions % 4 + 2 * (regions // 4)) % len(_PASTELS)]
    borders = np.zeros(regions.shape, bool)
    borders[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    borders[1:] |= regions[1:] != regions[:-1]
    image[borders] = 0.7
    extent = (-half_width, half_width, -half_width, half_width)
    axis.imshow(image, origin="lower", extent=extent, interpolation="antialiased")
    axis.plot(*codes.T, linestyle="", marker="o", markersize=4, color=ORANGE, markeredgecolor="white", zorder=4)


def _draw_arrows(axis: Any, record: Record, norm: Any) -> Any:
    points, gradient = (np.asarray(record.measured[name], float) for name in ("points", "gradient"))
    lengths = _lengths(record)
    moving = lengths > SHORTEST
    directions = -gradient[moving] / lengths[moving, None]
    spacing = points[1, 0] - points[0, 0]
    axis.plot(*points[~moving].T, linestyle="", marker=".", markersize=2, color="#888888")
    return axis.quiver(
        *points[moving].T,
        *(directions * spacing * 0.85).T,
        lengths[moving],
        norm=norm,
        cmap=matplotlib_module("colors").LinearSegmentedColormap.from_list("lengths", _SHORT_TO_LONG),
        angles="xy",
        scale_units="xy",
        scale=1,
        pivot="mid",
        width=0.0055,
    )


def _draw_heights(axis: Any) -> None:
    half_width = himmelblau.HALF_WIDTH
    heights = himmelblau.himmelblau(grid_points(half_width, _HEIGHTS_SIDE)).reshape(_HEIGHTS_SIDE, _HEIGHTS_SIDE)
    extent = (-half_width, half_width, -half_width, half_width)
    levels = np.linspace(0, np.log1p(900), 14)
    axis.contourf(np.log1p(heights), levels, origin="lower", extent=extent, cmap="Greys_r", alpha=0.45, extend="max")
    axis.plot(*np.transpose(himmelblau.MINIMA), linestyle="", marker="*", markersize=11, color="white", mec=INK)
    axis.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width))


def _draw_paths(axis: Any, points: np.ndarray, codes: np.ndarray) -> None:
    axis.plot(points[..., 0], points[..., 1], color=BLUE, linewidth=0.7, alpha=0.7)
    axis.plot(*points[0].T, linestyle="", marker="o", markersize=2.5, mfc="none", mec=BLUE, mew=0.6)
    axis.plot(*points[-1].T, linestyle="", marker="o", markersize=3, color=BLUE)
    axis.plot(codes[..., 0], codes[..., 1], color=ORANGE, linewidth=1.0, alpha=0.9)
    axis.plot(*codes[0].T, linestyle="", marker="x", markersize=3.5, color=ORANGE, mew=1.0)
    axis.plot(*codes[-1].T, linestyle="", marker="s", markersize=4, color=ORANGE, mec="white", mew=0.6)


def _lengths(record: Record) -> np.ndarray:
    return np.linalg.norm(np.asarray(record.measured["gradient"], float), axis=-1)
