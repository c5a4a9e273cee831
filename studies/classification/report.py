"""Tables of docs/classification.md, rebuilt from the records."""

from collections import defaultdict
from collections.abc import Callable, Mapping

from studies.classification.grid import MODELS, QUANTIZERS, SCALES
from studies.classification.trajectories import VARIANTS
from studies.common.document import not_measured, percent, with_spread
from studies.common.records import Record, Results
from vqjax.reporting import markdown_table

DOCUMENT, FIGURE = "classification.md", "classification/trajectories.png"
"""The document and the figure of the descents, from the directory of all documents."""

_SMALL, _WHOLE = {"resnet18": 0.85, "alexnet": 0.75, "vit": 0.6}, {"resnet18": 0.93, "alexnet": 0.8, "vit": 0.7}
LEAST_ACCURACY = {"cpu": _SMALL, "short": _WHOLE, "full": _WHOLE}
"""Accuracy that a network without a quantizer has to reach, by scale, or its rows do not count."""

_COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "accuracy (%)": lambda measured: percent(measured.get("top1")),
    "of training batches (%)": lambda measured: percent(measured.get("late_accuracy")),
    "codes used (%)": lambda measured: percent(measured.get("usage_split")),
    "perplexity": lambda measured: measured.get("perplexity_split"),
    "commitment loss": lambda measured: measured.get("late_commitment_loss"),
    "relative error": lambda measured: measured.get("late_relative_error"),
}
_OF_DESCENTS = {
    "f at the points": "value_at_points",
    "f at their codes": "value_at_codes",
    "quantization error at the end": "quantization_error",
    "of all steps": "delay",
}


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    cells: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    parts = {"descents": _of_descents(descents(results))}
    for scale in SCALES:
        for record in results.records(scale):
            cells[(scale, record.settings["model"], record.settings["quantizer"])].append(record)
        tables = []
        for model in MODELS:
            rows = []
            for quantizer in QUANTIZERS:
                if records := cells.get((scale, model, quantizer)):
                    numbers = [with_spread([of(record.measured) for record in records]) for of in _COLUMNS.values()]
                    rows.append([quantizer, *numbers, str(len(records))])
            if rows:
                tables.append(_titled(model, LEAST_ACCURACY[scale][model], cells[(scale, model, "none")]))
                tables.append(markdown_table(["quantizer", *_COLUMNS, "seeds"], rows))
        parts[scale] = "\n\n".join(tables) or not_measured("classification", scale)
    return parts


def descents(results: Results) -> dict[str, Record]:
    """Return the descents on Himmelblau's function by their names.

    Args:
      results: Records of the study.
    """
    found = {record.settings["variant"]: record for record in results.records("descents")}
    return {name: found[name] for name in VARIANTS if name in found}


def _of_descents(records: Mapping[str, Record]) -> str:
    if not records:
        return not_measured("classification")
    rows = [
        [name, *(with_spread(record.measured[column]) for column in _OF_DESCENTS.values())]
        for name, record in records.items()
    ]
    return f"![descents of the first seed]({FIGURE})\n\n" + markdown_table(["", *_OF_DESCENTS], rows)


def _titled(model: str, least: float, without: list[Record]) -> str:
    """The heading of a table, which says whether the network is good enough for its rows to count."""
    reached = [record.measured.get("top1") or 0 for record in without]
    if reached and min(reached) >= least:
        return f"**{model}**"
    return f"**{model}**, below the {100 * least:.0f} % that make its rows count"
