"""Tables of docs/video.md, rebuilt from the records."""

from collections import defaultdict
from collections.abc import Callable

from studies.common.document import not_measured, percent, with_spread
from studies.common.records import Record, Results
from studies.video.grid import ESTIMATORS, SETTINGS
from vqjax.reporting import markdown_table

DOCUMENT = "video.md"
_COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "PSNR (dB)": lambda measured: measured.get("psnr"),
    "over the mean of frames (dB)": lambda measured: measured.get("psnr_gain_temporal_mean"),
    "SSIM": lambda measured: measured.get("ssim"),
    "flicker over motion": lambda measured: measured.get("flicker_over_motion"),
    "codes used (%)": lambda measured: percent(measured.get("usage_split")),
    "perplexity": lambda measured: measured.get("perplexity_split"),
    "relative error": lambda measured: measured.get("late_relative_error"),
    "rms of latents": lambda measured: measured.get("late_rms_latents"),
}
_NOT_YET = not_measured("video")


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in results.records():
        cells[record.settings["setting"], record.settings["estimator"]].append(record)
    tables = []
    for setting in SETTINGS:
        rows = []
        for estimator in ESTIMATORS:
            if records := cells.get((setting, estimator)):
                numbers = [with_spread([of(record.measured) for record in records]) for of in _COLUMNS.values()]
                diverged = sum(record.measured["diverged"] for record in records)
                rows.append([f"`{estimator}`", *numbers, f"{diverged} of {len(records)}"])
        if rows:
            tables.append(f"**{setting}**\n\n" + markdown_table(["estimator", *_COLUMNS, "diverged"], rows))
    return {"estimators": "\n\n".join(tables) or _NOT_YET}
