"""Study of docs/generation.md: python -m studies.generation [--tokenizers=NAMES] [--models=NAMES] [--scale=NAME]

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
from studies.common.trainings import make_runs, run_directory
from studies.common.workers import alone
from studies.generation.report import DOCUMENT, PICTURES, curve_of, document_parts, likelihood_figure
from studies.generation.runs import MODELS, SCALES, TOKENIZERS, measure_run, prepare_run, study_runs
from vqjax.reporting.figures import save_figure
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/generation",
    docs: str = "docs",
    workdir: str = "runs/generation",
    report_only: bool = False,
    tokenizers: Sequence[str] = ("sonnet",),
    models: Sequence[str] = ("causal", "masked"),
    scale: Literal["cpu", "short", "full"] = "cpu",
    jobs: int = 1,
) -> None:
    """Run the study of docs/generation.md, and write the tables of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings.
      report_only: Run nothing; rebuild the document from the records.
      tokenizers: sonnet, "learned codes" or "affine and alternating".
      models: causal and masked.
      scale: cpu, for two cores; short, for ten minutes of a GPU; full, for a GPU.
      jobs: Models of tokens that are trained at once, each in a process of its own.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(jobs=jobs)
    runs = study_runs(chosen(tokenizers, list(TOKENIZERS), "tokenizers"), chosen(models, list(MODELS), "models"), scale)
    results = Results(records / "results.jsonl")
    (docs / PICTURES).mkdir(parents=True, exist_ok=True)
    if not report_only:
        unfinished = results.unfinished(runs)
        if jobs > 1:
            # One after another: they share tokenizers and the classifier. In processes that leave the device again.
            for of_run in unfinished:
                alone(prepare_run, of_run, run_directory(of_run, workdir))
        make_runs(unfinished, results, workdir, measure_run, jobs)
        for picture in sorted((workdir / "shared" / "pictures").glob("*.png")):
            shutil.copy(picture, docs / PICTURES)
    for scale in SCALES:
        if found := results.records(scale):
            save_figure(docs / curve_of(scale), likelihood_figure(found))
    print(write_document(docs / DOCUMENT, "Images from tokens", document_parts(results, docs)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.generation", "--models=causal")
