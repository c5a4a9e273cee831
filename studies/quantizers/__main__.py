"""Every quantizer on the same data and budget: python -m studies.quantizers [--report_only]

Trains a small autoencoder on photographs with each quantizer's preset of about 8 bits per latent vector, and writes
the table of docs/quantizers.md. Finished runs are not repeated: the same command again continues.
"""

import sys
from collections import defaultdict
from pathlib import Path

from absl import flags

from studies.common.document import table, write_filled
from studies.common.names import chosen
from studies.common.photograph_training import TrainingSetting
from studies.common.records import Record, read_records, unfinished
from studies.common.spread import with_spread
from studies.quantizers.facts import FACTS
from studies.quantizers.runs import family_runs, make_trainings
from vqjax.quantizers.registry import FAMILIES
from vqjax.training.cli import run

COMMAND = "python -m studies.quantizers"


def document_parts(output: Path) -> dict[str, str]:
    """The generated part of the document, from the records.

    Args:
      output: Directory of the study.

    Returns:
      Markdown by name.
    """
    records = defaultdict(list)
    for record in read_records(output / "results"):
        records[record.settings["quantizer"]["name"]].append(record)
    header = ["class", "source", "use it for", "bits", "µs", "PSNR (dB)", "codes used", "images/s"]
    rows = [_row(name, records[name]) for name in FAMILIES if name in records]
    return {"measured": table(header, rows) if rows else f"Not measured yet: `{COMMAND}`"}


def write_document(output: Path) -> Path:
    """Fills the generated part of the document beside a directory, which is made if there is none.

    Args:
      output: Directory of the study, such as ``docs/quantizers``.

    Returns:
      The document, such as ``docs/quantizers.md``.
    """
    path = output.with_suffix(".md")
    write_filled(path, "Quantizers: results", document_parts(output))
    return path


def _row(name: str, records: list[Record]) -> list[str]:
    facts = FACTS[name]

    def cell(measured: str) -> str:
        return with_spread([record.measured[measured] for record in records])

    bits = records[0].measured["bits_per_image"]
    usage = with_spread([_percent(record.measured["usage_split"]) for record in records])
    cost = f"{records[0].measured['microseconds_per_vector']:.2f}"
    speed = max((record.measured["images_per_second"] or 0 for record in records), default=0)
    words = [f"`{facts.kind}`", facts.source, facts.use]
    return [*words, "–" if bits is None else f"{bits:.0f}", cost, cell("psnr"), f"{usage} %", f"{speed:.0f}"]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def define_flags() -> None:
    """Declares the flags of the command."""
    flags.DEFINE_string("output", "docs/quantizers", "Directory of the records; the document stands beside it.")
    flags.DEFINE_integer("seeds", 3, "Trainings per quantizer.", lower_bound=1)
    flags.DEFINE_bool("report_only", False, "Run nothing; rebuild the table from the records.")
    flags.DEFINE_integer("steps", TrainingSetting.steps, "Steps of each training.", lower_bound=1)
    flags.DEFINE_list("quantizers", [], "Quantizers to train, by name; all by default.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    quantizers = chosen(values.quantizers, list(FAMILIES), "quantizers")
    output = Path(values.output)
    if not values.report_only:
        setting = TrainingSetting(steps=values.steps)
        runs = family_runs(output / "results", setting, values.seeds, quantizers)
        make_trainings(unfinished(runs), setting)
    print(write_document(output))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
