"""Figures of the study: gradient fields, descents on Himmelblau's function, and trainings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from studies.choosing import himmelblau
from studies.choosing.surfaces import SHORTEST, SURFACES, grid_points
from studies.common.document import mean_and_deviation
from studies.common.records import Record
from vqjax.functional.search import nearest_codes
from vqjax.reporting.figures import BLUE, INK, ORANGE, matplotlib_module, new_figure

_COLUMNS = 5
_PANEL_INCHES = 2.5
_REGION_SIDE = 320
_HEIGHTS_SIDE = 200
# Pastels, so that no region stands out; the order separates neighbors.
_PASTELS = ("#f3ede1", "#e3edf4", "#eaf3e6", "#f5e8ec", "#ece8f4", "#f4f1dd", "#e2f1ef", "#f3e6dd")

# Dark enough at both ends to be seen on the pastels.
_SHORT_TO_LONG = ("#e59b3a", "#2a9d8f", "#1b2a6b")

_COLLAPSE_COLUMNS = (("psnr", "held-out PSNR (dB)"), ("codes_used", "codes used"), ("perplexity_split", "perplexity"))
_START_COLORS = (BLUE, ORANGE)
_ROW_INCHES = 0.42


def surface_figure(surface_name: str, records: Sequence[Record]) -> Any:
    """Draw one panel per estimator: Voronoi regions, codes, and the steps that points would take.

    Args:
      surface_name: A key of ``SURFACES``.
      records: Gradient fields in the order of the panels.

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


def himmelblau_figure(records: Mapping[str, Record]) -> Any:
    """Draw one panel per descent: the paths of points and codes of the first seed.

    Args:
      records: Descents by the titles of the panels, in their order.

    Returns:
      A matplotlib figure.
    """
    figure, axes = _panels(len(records))
    for axis, (title, record) in zip(axes, records.items(), strict=True):
        _draw_heights(axis)
        _draw_paths(axis, np.asarray(record.measured["points"]), np.asarray(record.measured["codes"]))
        value = record.measured["value_at_points"][0]
        axis.set_title(f"{title}\n{'diverged' if value is None else f'here f(z) = {value:.1f}'}")
    (steps,) = {record.settings["steps"] for record in records.values()}
    figure.suptitle(
        f"{steps} updates on Himmelblau's function: points from ring to dot, "
        "codes from cross to square, minima as stars"
    )
    return figure


def collapse_figure(records: Mapping[str, Mapping[str, Sequence[Record]]]) -> Any:
    """Draw PSNR, codes used and perplexity of every training: a row per variant, a dot per run.

    Args:
      records: Runs by variant and initial codes, in the order of rows and of colors.

    Returns:
      A matplotlib figure, with mean and sample standard deviation of each row.
    """
    variants, starts = list(records), list(next(iter(records.values())))
    figure, axes = new_figure(11.0, 1.3 + _ROW_INCHES * len(variants), 1, len(_COLLAPSE_COLUMNS), sharey=True)
    for axis, (name, label) in zip(axes[0], _COLLAPSE_COLUMNS, strict=True):
        for row, variant in enumerate(variants):
            for place, start in enumerate(starts):
                offset = 0.32 * (place - (len(starts) - 1) / 2)
                _draw_runs(axis, row + offset, records[variant][start], name, _START_COLORS[place])
        axis.set_xlabel(label)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
        for row in range(0, len(variants), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0)
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].set_ylim(len(variants) - 0.5, -0.5)
    handles = [
        axes[0, 0].plot([], [], linestyle="", marker="o", color=_START_COLORS[place])[0] for place in range(len(starts))
    ]
    figure.legend(
        handles, [f"initial codes: {start}" for start in starts], loc="outside upper center", ncols=4, frameon=False
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


def _draw_runs(axis: Any, height: float, records: Sequence[Record], name: str, color: str) -> None:
    values = [record.measured.get(name) for record in records]
    both = mean_and_deviation(values)
    if both is None:
        return
    mean, deviation = both
    finite = [value for value in values if value is not None]
    axis.plot(finite, [height] * len(finite), linestyle="", marker="o", markersize=4.5, color=color, alpha=0.4, mew=0)
    if len(finite) > 1:
        axis.plot([mean - deviation, mean + deviation], [height, height], color=color, linewidth=1.6)
    axis.plot([mean], [height], linestyle="", marker="|", markersize=9, mew=2.0, color=color)
