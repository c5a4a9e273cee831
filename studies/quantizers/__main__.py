"""Study of docs/quantizers.md: python -m studies.quantizers [--quantizers=NAMES] [--report_only]

Trains a small autoencoder on photographs with each quantizer's preset of about 8 bits per latent vector, and writes the
table of the document. Finished runs are not repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence

from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.training import TrainingSetting
from studies.quantizers.report import DOCUMENT, document_parts
from studies.quantizers.runs import make_runs, quantizer_runs
from studies.quantizers.variants import VARIANTS
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/quantizers",
    docs: str = "docs",
    report_only: bool = False,
    seeds: int = 3,
    steps: int = TrainingSetting.steps,
    quantizers: Sequence[str] = (),
) -> None:
    """Run the study of docs/quantizers.md, and write the table of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document and, in a directory of their own, its figures.
      report_only: Run nothing; rebuild the document from the records.
      seeds: Trainings per quantizer.
      steps: Steps of each training.
      quantizers: Quantizers to train, by name; all by default.
    """
    records, docs = local_paths(records=records, docs=docs)
    check_positive(seeds=seeds, steps=steps)
    names = chosen(quantizers, list(VARIANTS), "quantizers")
    results = Results(records / "results.jsonl")
    if not report_only:
        setting = TrainingSetting(steps=steps)
        make_runs(results.unfinished(quantizer_runs(setting, seeds, names)), results, setting)
    print(write_document(docs / DOCUMENT, "Quantizers: results", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.quantizers", "--quantizers=vq,fsq --seeds=1")
