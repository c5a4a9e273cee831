"""Study of docs/generation.md: python -m studies.generation [--tokenizers=NAMES] [--models=NAMES] [--scale=cpu|full]

Trains a tokenizer of CIFAR-10, a classifier and models of the tokens, and measures their samples. Finished runs are not
repeated, and tokenizer and classifier are shared: the same command again continues an interrupted study.
"""

import shutil
import sys
from collections.abc import Sequence
from typing import Literal

from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.trainings import make_runs
from studies.generation.report import DOCUMENT, PICTURES, document_parts
from studies.generation.runs import MODELS, TOKENIZERS, measure_run, study_runs
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/generation",
    docs: str = "docs",
    workdir: str = "runs/generation",
    report_only: bool = False,
    tokenizers: Sequence[str] = ("sonnet",),
    models: Sequence[str] = ("causal", "masked"),
    scale: Literal["cpu", "full"] = "cpu",
    jobs: int = 1,
) -> None:
    """Run the study of docs/generation.md, and write the tables of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings.
      report_only: Run nothing; rebuild the document from the records.
      tokenizers: sonnet, or "affine and alternating".
      models: causal and masked.
      scale: cpu, for two cores; full, for a GPU.
      jobs: Trainings at once, each in a process of its own; of one tokenizer.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(jobs=jobs)
    runs = study_runs(chosen(tokenizers, list(TOKENIZERS), "tokenizers"), chosen(models, list(MODELS), "models"), scale)
    results = Results(records / "results.jsonl")
    if not report_only:
        make_runs(results.unfinished(runs), results, workdir, measure_run, jobs)
        (docs / PICTURES).mkdir(parents=True, exist_ok=True)
        for picture in sorted((workdir / "shared" / "pictures").glob("*.png")):
            shutil.copy(picture, docs / PICTURES)
    print(write_document(docs / DOCUMENT, "Images from tokens", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.generation", "--models=causal")
