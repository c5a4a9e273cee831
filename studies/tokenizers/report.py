"""Tables of docs/tokenizers.md, rebuilt from the records."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from studies.common.document import not_measured, percent, with_spread
from studies.common.records import Record, Results
from studies.tokenizers.grid import DISCRIMINATED, ESTIMATORS, SETTINGS
from vqjax.reporting import markdown_table

DOCUMENT = "tokenizers.md"
_COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "PSNR (dB)": lambda measured: measured.get("psnr"),
    "over the mean color (dB)": lambda measured: measured.get("psnr_gain"),
    "SSIM": lambda measured: measured.get("ssim"),
    "feature distance": lambda measured: measured.get("feature_distance"),
    "codes used (%)": lambda measured: percent(measured.get("usage_split")),
    "perplexity": lambda measured: measured.get("perplexity_split"),
    "error": lambda measured: measured.get("late_quantization_error"),
    "relative error": lambda measured: measured.get("late_relative_error"),
    "rms of latents": lambda measured: measured.get("late_rms_latents"),
    "loss": lambda measured: measured.get("late_loss"),
}
_OF_DISCRIMINATOR: dict[str, Callable[[dict], float | None]] = {
    "log-spectral distance (dB)": lambda measured: measured.get("log_spectral_distance"),
    **{name: _COLUMNS[name] for name in ("feature distance", "PSNR (dB)", "SSIM", "codes used (%)")},
    "its accuracy (%)": lambda measured: percent(measured.get("late_disc_accuracy")),
    "logits of images": lambda measured: measured.get("late_logits_real"),
    "of reconstructions": lambda measured: measured.get("late_logits_fake"),
}
_NOT_YET = not_measured("tokenizers")


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in results.records():
        of = record.settings
        cells[("discriminator", of["arm"]) if "arm" in of else (of["setting"], of["estimator"])].append(record)
    tables = []
    for setting in SETTINGS:
        if rows := _rows(cells, setting, ESTIMATORS, _COLUMNS, "`{}`"):
            tables.append(f"**{setting}**\n\n" + markdown_table(["estimator", *_COLUMNS, "seeds"], rows))
    arms = _rows(cells, "discriminator", DISCRIMINATED, _OF_DISCRIMINATOR, "{} discriminator")
    return {
        "estimators": "\n\n".join(tables) or _NOT_YET,
        "discriminator": markdown_table(["", *_OF_DISCRIMINATOR, "seeds"], arms) if arms else _NOT_YET,
    }


def _rows(
    cells: dict[tuple[str, str], list[Record]],
    group: str,
    names: Iterable[str],
    columns: dict[str, Callable[[dict], float | None]],
    title: str,
) -> list[list[str]]:
    rows = []
    for name in names:
        if records := cells.get((group, name)):
            numbers = [with_spread([of(record.measured) for record in records]) for of in columns.values()]
            rows.append([title.format(name), *numbers, str(len(records))])
    return rows
