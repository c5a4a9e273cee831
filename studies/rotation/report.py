"""Tables of docs/rotation.md, rebuilt from the records."""

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence

from studies.common.document import not_measured, percent, with_interval, with_spread
from studies.common.records import Record, Results
from studies.rotation.grid import COMBINED, CONFIRMED_WITH, ESTIMATORS, FINALISTS, FRESH, REMEDIES, SETTINGS
from vqjax.reporting import markdown_table

DOCUMENT = "rotation.md"
_NOT_YET = not_measured("rotation")
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
    cells, fresh = defaultdict(list), defaultdict(list)
    for record in results.records():
        of_seed = fresh if record.settings["seed"] >= FRESH else cells
        of_seed[tuple(record.settings[name] for name in ("setting", "estimator", "remedy"))].append(record)
    return {
        "estimators": _estimators(cells),
        "pushes": _pushes(cells),
        "remedies": _remedies(cells),
        "confirmation": _confirmation(fresh),
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


def _confirmation(cells: dict[tuple[str, str, str], list[Record]]) -> str:
    """Paired differences from straight-through on the fresh seeds."""
    rows = []
    for setting, remedy, estimator in itertools.product(SETTINGS, CONFIRMED_WITH, FINALISTS[1:]):
        ours, others = (_by_seed(cells.get((setting, name, remedy), [])) for name in (estimator, FINALISTS[0]))
        seeds = sorted(ours.keys() & others.keys())
        if len(seeds) > 1:
            pairs = [(ours[seed], others[seed]) for seed in seeds]
            numbers = [
                with_interval([100 * (of(a) / of(b) - 1) for a, b in pairs])
                for of in (operator.itemgetter("mse_over_variance"), operator.itemgetter("feature_distance"))
            ]
            numbers.append(with_interval([100 * (a["usage_split"] - b["usage_split"]) for a, b in pairs]))
            rows.append([setting, remedy, f"`{estimator}`", *numbers, str(len(seeds))])
    header = ["setting", "remedy", "estimator", "MSE (%)", "feature distance (%)", "codes used (points)", "seeds"]
    return (
        markdown_table(header, rows) if rows else "Not measured yet: `python -m studies.rotation --stages=confirmation`"
    )


def _by_seed(records: Sequence[Record]) -> dict[int, dict]:
    return {record.settings["seed"]: record.measured for record in records if not record.measured["diverged"]}


def _psnr_and_usage(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    psnr = with_spread([record.measured.get("psnr") for record in records])
    return f"{psnr} dB, {with_spread([percent(record.measured.get('usage_split')) for record in records])} %"
