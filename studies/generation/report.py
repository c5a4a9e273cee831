"""Tables and figures of docs/generation.md, rebuilt from the records."""

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common.document import not_measured, percent
from studies.common.records import Record, Results, slug
from studies.generation.runs import GUIDANCES, MODELS, SCALES, TOKENIZERS
from vqjax.reporting import markdown_table
from vqjax.reporting.figures import BLUE, INK, ORANGE, new_figure

DOCUMENT, PICTURES = "generation.md", "generation"
"""The document and the directory of its pictures, from the directory of all documents."""

_COUNTED = {"unigram_bits": "frequencies of codes", "bigram_bits": "pairs of neighbors"}
_LABELS = {"causal": "causal", "masked": "masked, from the class alone"}
_LIKELIHOODS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "model": operator.itemgetter("bits"),
    **{title: operator.itemgetter(name) for name, title in _COUNTED.items()},
}
_IMAGES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    # The first records were made with one guidance.
    "guidance": lambda measured: measured.get("guidance", 1.5),
    "distance of samples": lambda measured: measured["distance_samples"],
    "of reconstructions": lambda measured: measured["distance_reconstructions"],
    "of tokens by frequency": lambda measured: measured["distance_unigram"],
    "gap closed (%)": lambda measured: percent(measured["gap_closed"]),
    "recognized samples (%)": lambda measured: percent(measured["recognized_samples"]),
    "reconstructions (%)": lambda measured: percent(measured["recognized_reconstructions"]),
    "images (%)": lambda measured: percent(measured["recognized_originals"]),
    "to the nearest training image": lambda measured: measured["nearest_samples"],
    "from held-out images": lambda measured: measured["nearest_originals"],
}

_BY_GUIDANCE: dict[str, Callable[[Sequence[float]], float]] = {
    "Distance of samples by guidance:": lambda numbers: numbers[0],
    "Recognized samples (%) by guidance:": lambda numbers: percent(numbers[1]),
}


def document_parts(results: Results, docs: Path) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.
      docs: Directory of all documents; pictures that are not in it are left out.

    Returns:
      Markdown by name.
    """
    parts = {}
    for scale in SCALES:
        found = {
            (of["tokenizer"], of["model"]): record for record in results.records(scale) for of in [record.settings]
        }
        records = {key: found[key] for name in TOKENIZERS for model in MODELS if (key := (name, model)) in found}
        parts[scale] = _of_scale(scale, records, docs) if records else not_measured("generation", scale)
    return parts


def curve_of(scale: str) -> str:
    """The figure of the likelihoods of a scale, from the directory of all documents."""
    return f"{PICTURES}/{scale}_likelihood.png"


def likelihood_figure(records: Sequence[Record]) -> Any:
    """Draw the held-out bits per token of each model over its training, a panel for each tokenizer.

    Args:
      records: Of one scale.

    Returns:
      A matplotlib figure.
    """
    panels = [name for name in TOKENIZERS if any(record.settings["tokenizer"] == name for record in records)]
    figure, axes = new_figure(4.2 * len(panels), 3.2, 1, len(panels))
    for tokenizer, panel in zip(panels, axes[0], strict=True):
        of_tokenizer = [record for record in records if record.settings["tokenizer"] == tokenizer]
        lines = [(of_tokenizer[0].measured[name], title, "bottom") for name, title in _COUNTED.items()]
        for bits, _, _ in lines:
            panel.axhline(bits, color=INK, linewidth=0.8, linestyle="--")
        for record in of_tokenizer:
            name, curve = record.settings["model"], record.measured["curve"]
            panel.plot(*zip(*curve, strict=True), "o-", markersize=3, color=BLUE if name == "causal" else ORANGE)
            lines.append((curve[-1][1], _LABELS[name], "top"))
        for bits, text, side in lines:
            panel.annotate(
                text,
                (0.99, bits),
                (0, 2 if side == "bottom" else -4),
                panel.get_yaxis_transform(),
                "offset points",
                ha="right",
                va=side,
            )
        panel.margins(y=0.12)
        panel.set(title=tokenizer, xlabel="step")
    axes[0][0].set_ylabel("held-out bits per token")
    return figure


def _of_scale(scale: str, records: Mapping[tuple[str, str], Record], docs: Path) -> str:
    """Tables and pictures of the runs of a scale."""
    blocks = []
    for title, columns in (("Bits per token of held-out images:", _LIKELIHOODS), ("Images:", _IMAGES)):
        rows = [[*key, *(f"{of(record.measured):.4g}" for of in columns.values())] for key, record in records.items()]
        blocks += [title, markdown_table(["tokenizer", "model", *columns], rows)]
    swept = {
        key: {guidance: numbers for guidance, *numbers in record.measured["by_guidance"]}
        for key, record in records.items()
        if "by_guidance" in record.measured
    }
    for title, of in _BY_GUIDANCE.items() if swept else ():
        rows = [
            [*key, *(f"{of(by_guidance[g]):.4g}" if g in by_guidance else "" for g in GUIDANCES)]
            for key, by_guidance in swept.items()
        ]
        blocks += [title, markdown_table(["tokenizer", "model", *map("{:g}".format, GUIDANCES)], rows)]
    blocks.append(f"![held-out bits per token over the training]({curve_of(scale)})")
    for (tokenizer, model), record in records.items():
        pictures = {kind: f"{PICTURES}/{slug(record.run)}_{kind}.png" for kind in ("samples", "nearest")}
        found = [f"![{kind}]({place})" for kind, place in pictures.items() if (docs / place).exists()]
        if found:
            title = f"Samples of the {model} model over {tokenizer}, a column for each class"
            blocks += [f"{title}{', and their nearest images' if len(found) > 1 else ''}:", *found]
    return "\n\n".join(blocks)
