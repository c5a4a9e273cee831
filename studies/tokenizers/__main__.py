"""Study of docs/tokenizers.md: python -m studies.tokenizers [--stages=NAMES] [--settings=NAMES] [--seeds=N]

Trains the tokenizers of the rotation-trick paper at small width with four estimators, and one VQGAN without and with
its discriminator, on photographs in data/imagenette (train/ and val/, classes as folders). Finished trainings are not
repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence

from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.trainings import make_runs
from studies.tokenizers.grid import SETTINGS
from studies.tokenizers.report import DOCUMENT, document_parts
from studies.tokenizers.runs import STAGES, measure_run, study_runs
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/tokenizers",
    docs: str = "docs",
    workdir: str = "runs/tokenizers",
    report_only: bool = False,
    stages: Sequence[str] = STAGES,
    settings: Sequence[str] = tuple(SETTINGS),
    seeds: int = 3,
    jobs: int = 1,
) -> None:
    """Run the study of docs/tokenizers.md, and write the tables of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings, each of which is removed when it is finished.
      report_only: Run nothing; rebuild the document from the records.
      stages: estimators, and discriminator.
      settings: What to train with each estimator, by name.
      seeds: Trainings of each.
      jobs: Trainings at once, each in a process of its own; on a GPU with XLA_PYTHON_CLIENT_PREALLOCATE=false.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(seeds=seeds, jobs=jobs)
    names, parts = chosen(settings, list(SETTINGS), "settings"), chosen(stages, STAGES, "stages")
    results = Results(records / "results.jsonl")
    if not report_only:
        make_runs(results.unfinished(study_runs(parts, names, seeds)), results, workdir, measure_run, jobs)
    print(write_document(docs / DOCUMENT, "Tokenizers of the rotation-trick paper", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.tokenizers", "--settings=vqgan --seeds=1")
