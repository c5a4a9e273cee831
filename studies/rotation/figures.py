"""The figure of docs/rotation.md: quality against the scale that an estimator leaves the latents."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from studies.common.records import Record
from studies.rotation.candidates import CANDIDATES
from studies.rotation.grid import FRESH, SETTINGS
from vqjax.reporting.figures import BLUE, INK, ORANGE, new_figure

_INCHES = 4.4
_LEAST_PSNR = 21.0
_SCALES, _TICKS, _MIDDLE = (0.004, 60.0), (0.1, 0.3, 1.0, 3.0), 0.5
_LINE = 0.055
_LABELLED = (
    *("straight_through", "rotation", "rotation_unscaled", "rotation_normalized", "tangential_rotation"),
    *("dynamic_straight_through", "diveq", "tangential_rotation_inverse"),
)


def scale_figure(records: Sequence[Record]) -> Any:
    """Draw the held-out PSNR of each estimator against the root mean square of its latents, a panel for each setting.

    Args:
      records: Of the study; those with remedies, of fresh seeds, and without a measured size are left out, and
        estimators whose mean is below 21 dB.

    Returns:
      A matplotlib figure.
    """
    points: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        of = record.settings
        shown = record.measured.get("psnr") is not None and "rms_latents" in record.measured
        if of["remedy"] == "none" and of["seed"] < FRESH and shown:
            points[of["setting"]][of["estimator"]].append(record)
    panels = [name for name in SETTINGS if name in points]
    figure, axes = new_figure(_INCHES * len(panels), 3.6, 1, len(panels))
    for setting, panel in zip(panels, axes[0], strict=True):
        labels = []
        for estimator, of_estimator in points[setting].items():
            x, y = (fmean(record.measured[name] for record in of_estimator) for name in ("rms_latents", "psnr"))
            if y <= _LEAST_PSNR:
                continue
            color = ORANGE if "rotation" in estimator else BLUE
            panel.plot(x, y, "o", color=color, fillstyle="none" if estimator in CANDIDATES else "full")
            if estimator in _LABELLED:
                labels.append((y, x, estimator))
        _label(panel, labels)
        panel.set(xscale="log", xlim=_SCALES, xticks=_TICKS, xticklabels=map(str, _TICKS))
        panel.minorticks_off()
        panel.set(title=f"{setting}, {SETTINGS[setting].length:,} steps", xlabel="root mean square of the latents")
    axes[0][0].set_ylabel("held-out PSNR (dB)")
    return figure


def _label(panel: Any, labels: list[tuple[float, float, str]]) -> None:
    """Write names beside points, each at least a line below the one before."""
    low, high = panel.get_ylim()
    above = {"left": high, "right": high}
    for y, x, name in sorted(labels, reverse=True):
        side = "left" if x > _MIDDLE else "right"
        above[side] = min(y, above[side] - _LINE * (high - low))
        panel.annotate(
            name,
            (x, y),
            xytext=(x * (0.7 if side == "right" else 1.4), above[side]),
            horizontalalignment=side,
            verticalalignment="center",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "shrinkA": 0, "shrinkB": 3},
        )
