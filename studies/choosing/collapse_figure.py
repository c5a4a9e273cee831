"""The picture of the collapse experiment: every run a dot, every variant a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.plotting import BLUE, ORANGE, new_figure
from studies.common.records import Record
from studies.common.spread import mean_and_deviation

_COLUMNS = (("psnr", "held-out PSNR (dB)"), ("codes_used", "codes used"), ("perplexity_split", "perplexity"))
_COLORS = (BLUE, ORANGE, "#4a8f3c", "#8a4fa3")
_ROW_INCHES = 0.42


def collapse_figure(records: Mapping[str, Mapping[str, Sequence[Record]]]) -> Any:
    """Draws PSNR, codes used and perplexity of every run, with mean and sample standard deviation.

    Args:
      records: The runs of each start of each variant, in the order of rows and of colors.

    Returns:
      A matplotlib figure.
    """
    variants, starts = list(records), list(next(iter(records.values())))
    figure, axes = new_figure(11.0, 1.3 + _ROW_INCHES * len(variants), 1, len(_COLUMNS), sharey=True)
    for axis, (name, label) in zip(axes[0], _COLUMNS, strict=True):
        for row, variant in enumerate(variants):
            for place, start in enumerate(starts):
                offset = 0.32 * (place - (len(starts) - 1) / 2)
                _draw_runs(axis, row + offset, records[variant][start], name, _COLORS[place % len(_COLORS)])
        axis.set_xlabel(label)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
        for row in range(0, len(variants), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0)
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].set_ylim(len(variants) - 0.5, -0.5)
    handles = [
        axes[0, 0].plot([], [], linestyle="", marker="o", color=_COLORS[i % len(_COLORS)])[0]
        for i in range(len(starts))
    ]
    figure.legend(
        handles, [f"initial codes: {start}" for start in starts], loc="outside upper center", ncols=4, frameon=False
    )
    return figure


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
