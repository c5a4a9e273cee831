"""Tables of docs/classification.md, rebuilt from the records."""

from collections import defaultdict
from collections.abc import Callable

from studies.classification.grid import MODELS, QUANTIZERS, SCALES
from studies.common.document import percent, with_spread
from studies.common.records import Record, Results
from vqjax.reporting import markdown_table

DOCUMENT = "classification.md"
LEAST_ACCURACY = {"resnet18": 0.85, "alexnet": 0.75, "vit": 0.6}
"""Accuracy that a network without a quantizer has to reach, or its rows do not count."""

_COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "accuracy (%)": lambda measured: percent(measured.get("top1")),
    "of training batches (%)": lambda measured: percent(measured.get("late_accuracy")),
    "codes used (%)": lambda measured: percent(measured.get("usage_split")),
    "perplexity": lambda measured: measured.get("perplexity_split"),
    "commitment loss": lambda measured: measured.get("late_commitment_loss"),
    "relative error": lambda measured: measured.get("late_relative_error"),
}
_NOT_YET = "Not measured yet: `python -m studies.classification`"


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    cells: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in results.records():
        of = record.settings
        cells[(of["scale"], of["model"], of["quantizer"])].append(record)
    parts = {}
    for scale in SCALES:
        tables = []
        for model in MODELS:
            rows = []
            for quantizer in QUANTIZERS:
                if records := cells.get((scale, model, quantizer)):
                    numbers = [with_spread([of(record.measured) for record in records]) for of in _COLUMNS.values()]
                    rows.append([quantizer, *numbers, str(len(records))])
            if rows:
                tables.append(_titled(model, cells[(scale, model, "none")]))
                tables.append(markdown_table(["quantizer", *_COLUMNS, "seeds"], rows))
        parts[scale] = "\n\n".join(tables) or _NOT_YET
    return parts


def _titled(model: str, without: list[Record]) -> str:
    """The heading of a table, which says whether the network is good enough for its rows to count."""
    reached = [record.measured.get("top1") or 0 for record in without]
    if reached and min(reached) >= LEAST_ACCURACY[model]:
        return f"**{model}**"
    return f"**{model}**, below the {100 * LEAST_ACCURACY[model]:.0f} % that make its rows count"
