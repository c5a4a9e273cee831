"""Tables of docs/rotation.md, rebuilt from the records."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from studies.common.document import percent, with_spread
from studies.common.records import Record, Results
from studies.rotation.grid import COMBINED, ESTIMATORS, REMEDIES, SETTINGS
from vqjax.reporting import markdown_table

DOCUMENT = "rotation.md"
_NOT_YET = "Not measured yet: `python -m studies.rotation`"
_COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "PSNR (dB)": lambda measured: measured.get("psnr"),
    "SSIM": lambda measured: measured.get("ssim"),
    "feature distance": lambda measured: measured.get("feature_distance"),
    "codes used (%)": lambda measured: percent(measured.get("usage_split")),
    "perplexity": lambda measured: measured.get("perplexity_split"),
    "relative error": lambda measured: measured.get("late_relative_error"),
    "angle": lambda measured: measured.get("late_angle"),
    "rms of latents": lambda measured: measured.get("rms_latents"),
}
_PUSHES = {
    "⟨q, g⟩": "code_push",
    "⟨q − z, g⟩": "cost_of_quantization",
    "commitment": "commitment_pull",
}


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    cells = defaultdict(list)
    for record in results.records():
        cells[tuple(record.settings[name] for name in ("setting", "estimator", "remedy"))].append(record)
    return {
        "estimators": _estimators(cells),
        "pushes": _pushes(cells),
        "remedies": _remedies(cells),
    }


def _estimators(cells: dict[tuple[str, str, str], list[Record]]) -> str:
    tables = []
    for setting in SETTINGS:
        rows = [
            [f"`{estimator}`", *_row(cells[setting, estimator, "none"])]
            for estimator in ESTIMATORS
            if (setting, estimator, "none") in cells
        ]
        if rows:
            tables.append(f"**{setting}**\n\n" + markdown_table(["estimator", *_COLUMNS, "seeds"], rows))
    return "\n\n".join(tables) or _NOT_YET


def _row(records: Sequence[Record]) -> list[str]:
    numbers = [with_spread([of(record.measured) for record in records]) for of in _COLUMNS.values()]
    return [*numbers, str(len(records))]


def _pushes(cells: dict[tuple[str, str, str], list[Record]]) -> str:
    rows = []
    for (setting, estimator, remedy), records in cells.items():
        if remedy == "none" and estimator in COMBINED and not any(record.measured["diverged"] for record in records):
            numbers = [with_spread([record.measured[name] for record in records]) for name in _PUSHES.values()]
            error = max(record.measured["code_push_error"] for record in records)
            rows.append([setting, f"`{estimator}`", *numbers, f"{error:.2g}"])
    header = ["setting", "estimator", *_PUSHES, "standard error of ⟨q, g⟩"]
    return markdown_table(header, rows) if rows else _NOT_YET


def _remedies(cells: dict[tuple[str, str, str], list[Record]]) -> str:
    rows = []
    for remedy in REMEDIES:
        of_remedy = [cells.get(("sonnet", estimator, remedy), []) for estimator in COMBINED]
        if any(of_remedy):
            rows.append([remedy, *(_psnr_and_usage(records) for records in of_remedy)])
    return markdown_table(["remedy", *(f"`{name}`" for name in COMBINED)], rows) if rows else _NOT_YET


def _psnr_and_usage(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    psnr = with_spread([record.measured.get("psnr") for record in records])
    return f"{psnr} dB, {with_spread([percent(record.measured.get('usage_split')) for record in records])} %"
