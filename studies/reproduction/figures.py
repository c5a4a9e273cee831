"""Figures of the reproduction: reconstructions, codebooks, curves and commitment weights."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studies.common.records import Record
from studies.reproduction.layout import aligned
from studies.reproduction.runs import BETAS, PICTURED, SCALES, Configuration, snapshot_path
from studies.reproduction.training import Scale, snapshot_epochs
from vqjax.reporting.figures import BLUE, INK, ORANGE, new_figure, save_figure

Runs = dict[Configuration, list[Record]]

FIGURES = "reproduction"
"""Directory of the figures in the directory of all documents."""

_COLORS = {"faithful": ORANGE, "corrected": BLUE}
COLUMNS = {"total": "loss", "reconstruction": "reconstruction_mse", "codebook": "codebook_loss"}
COLUMNS |= {"perplexity": "perplexity"}
"""Columns of the study, in its order, with their names in the records."""

_DRAWN = ("reconstruction", "perplexity", "total")


def write_figures(
    records: Path, docs: Path, study: dict[str, Runs], published: dict[str, dict[str, Any]]
) -> list[Path]:
    """Draw the figures of every scale that has the records.

    Args:
      records: Directory of the records, with ``snapshots``.
      docs: Directory of all documents.
      study: Runs by scale.
      published: Stored runs of the CIFAR-10 study.

    Returns:
      The files written.
    """
    drawn = []
    for scale_name, runs in study.items():
        scale = SCALES[scale_name]
        if not all(configuration in runs for configuration in PICTURED):
            continue
        comparable = published if scale.is_published else {}
        figures = {
            "reconstructions": _reconstructions(records, scale),
            "codebooks": _codebooks(runs, scale),
            "curves": _curves(runs, comparable),
        }
        if sum(Configuration("faithful", commitment_weight=beta) in runs for beta in BETAS) > 1:
            figures["commitment_weights"] = _betas(runs, comparable, scale.epochs)
        for name, figure in figures.items():
            path = docs / FIGURES / f"{scale_name}_{name}.png"
            figure.suptitle(scale.length, fontsize="medium")
            save_figure(path, figure)
            drawn.append(path)
    return drawn


def _reconstructions(records: Path, scale: Scale) -> Any:
    """One row per epoch, under the originals; both protocols side by side."""
    shown = snapshot_epochs(scale.epochs)
    figure, axes = new_figure(11.0, 0.8 * (len(shown) + 1), len(shown) + 1, len(PICTURED))
    originals = _picture(snapshot_path(records, scale, None))
    for column, configuration in zip(axes.T, PICTURED, strict=True):
        rows = [originals, *(_picture(snapshot_path(records, scale, configuration, epoch)) for epoch in shown)]
        labels = ["originals", *(f"epoch {epoch}" for epoch in shown)]
        for panel, row, label in zip(column, rows, labels, strict=True):
            panel.imshow(row, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
            panel.set_ylabel(label, rotation=0, ha="right", va="center")
        column[0].set_title(configuration.variant)
    return figure


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _codebooks(runs: Runs, scale: Scale) -> Any:
    """t-SNE of the codes, colored by the number of test latents that chose them."""
    shown = sorted({0, scale.epochs // 2, scale.epochs - 1})
    figure, axes = new_figure(3.4 * len(shown), 3.4 * len(PICTURED), len(PICTURED), len(shown))
    for row, configuration in zip(axes, PICTURED, strict=True):
        (record,) = (record for record in runs[configuration] if record.settings["seed"] == 0)
        before = None
        for panel, epoch in zip(row, shown, strict=True):
            codebook = record.measured["epochs"][epoch]["codebook"]
            layout, counts = np.asarray(codebook["layout"]), np.asarray(codebook["counts"])
            before = layout = layout - layout.mean(axis=0) if before is None else aligned(layout, before)
            used = counts > 0
            panel.scatter(*layout[~used].T, s=5, color="#cccccc", linewidths=0)
            points = panel.scatter(
                *layout[used].T, s=14, c=np.log10(counts[used]), cmap="viridis", vmin=0, vmax=5, linewidths=0
            )
            panel.set_title(f"{configuration.variant}, epoch {epoch}\n{used.sum()} of {len(used)} codes used")
            panel.set_xticks([])
            panel.set_yticks([])
    figure.colorbar(points, ax=axes, label="test latents of a code (power of ten); gray: none", shrink=0.6)
    return figure


def _curves(runs: Runs, published: dict[str, dict[str, Any]]) -> Any:
    figure, axes = new_figure(11.0, 3.2, 1, len(_DRAWN))
    for panel, title in zip(axes[0], _DRAWN, strict=True):
        longest = 0
        for configuration in PICTURED:
            values = _per_epoch(runs[configuration], COLUMNS[title])
            longest = max(longest, values.shape[1])
            _band(panel, 1 + np.arange(values.shape[1]), values, _COLORS[configuration.variant], configuration.variant)
        column = list(COLUMNS).index(title)
        same = [run for run in _same_size(published) if run["commitment_weight"] == PICTURED[0].commitment_weight]
        for number, run in enumerate(same):
            numbers = [epoch[column] for epoch in run["test"][:longest]]
            label = "published runs" if number == 0 else None
            panel.plot(1 + np.arange(len(numbers)), numbers, color=INK, lw=0.8, ls=":", label=label)
        panel.set_title(f"{title}, test split")
        panel.set_xlabel("epochs")
    axes[0, 0].legend()
    return figure


def _same_size(published: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in published.values() if run["num_codes"] == PICTURED[0].num_codes]


def _betas(runs: Runs, published: dict[str, dict[str, Any]], epochs: int) -> Any:
    figure, axes = new_figure(11.0, 3.2, 1, len(_DRAWN))
    for panel, title in zip(axes[0], _DRAWN, strict=True):
        for variant, color in _COLORS.items():
            found = [beta for beta in BETAS if Configuration(variant, commitment_weight=beta) in runs]
            values = [
                _per_epoch(runs[Configuration(variant, commitment_weight=beta)], COLUMNS[title])[:, -1]
                for beta in found
            ]
            means = [np.mean(of_beta) for of_beta in values]
            panel.plot(found, means, color=color, marker="o", ms=4, label=variant)
            for beta, of_beta in zip(found, values, strict=True):
                panel.vlines(beta, of_beta.min(), of_beta.max(), color=color, lw=1)
        for number, run in enumerate(_same_size(published)):
            value = run["test"][epochs - 1][list(COLUMNS).index(title)]
            label = f"published runs, epoch {epochs}" if number == 0 else None
            panel.plot(run["commitment_weight"], value, color=INK, marker="x", ms=5, ls="", label=label)
        panel.set_xscale("log")
        panel.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
        panel.minorticks_off()
        panel.set_title(f"{title}, test split")
        panel.set_xlabel("commitment weight β")
    # The curves fall and leave room there.
    axes[0, -1].legend(loc="upper right")
    return figure


def _band(panel: Any, epochs: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    panel.plot(epochs, values.mean(axis=0), color=color, label=label)
    panel.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, lw=0)


def _per_epoch(records: list[Record], measured: str) -> np.ndarray:
    """One row per run; NaN where a number is not finite."""
    return np.array([[epoch["test"][measured] for epoch in record.measured["epochs"]] for record in records], float)
