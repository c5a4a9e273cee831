"""Document of the study, rebuilt from its records."""

from collections import defaultdict

from studies.common.document import not_measured, percent, with_spread
from studies.common.records import Record, Results
from studies.quantizers.variants import VARIANTS
from vqjax.reporting import markdown_table

DOCUMENT = "quantizers.md"


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated part of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    records = defaultdict(list)
    for record in results.records():
        records[record.settings["quantizer"]].append(record)
    header = ["class", "source", "use it for", "bits", "µs", "PSNR (dB)", "codes used", "images/s"]
    rows = [_row(name, records[name]) for name in VARIANTS if name in records]
    return {"measured": markdown_table(header, rows) if rows else not_measured("quantizers")}


def _row(name: str, records: list[Record]) -> list[str]:
    variant, first = VARIANTS[name], records[0].measured
    bits = "–" if first["bits_per_image"] is None else f"{first['bits_per_image']:.0f}"
    psnr = with_spread([record.measured["psnr"] for record in records])
    usage = with_spread([percent(record.measured["usage_split"]) for record in records])
    speed = max(record.measured["images_per_second"] or 0 for record in records)
    numbers = [bits, f"{first['microseconds_per_vector']:.2f}", psnr, f"{usage} %", f"{speed:.0f}"]
    return [f"`{variant.kind}`", variant.source, variant.use, *numbers]
