"""Study of docs/rotation.md: python -m studies.rotation [--stages=NAMES] [--settings=NAMES] [--seeds=N] [--jobs=N]

Trains configs of the project with each estimator, and combines five of them with remedies against unused codes.
Finished trainings are not repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence

from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.trainings import make_runs
from studies.rotation.figures import scale_figure
from studies.rotation.grid import SETTINGS
from studies.rotation.report import DOCUMENT, document_parts
from studies.rotation.runs import STAGES, measure_run, study_runs
from vqjax.reporting.figures import save_figure
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/rotation",
    docs: str = "docs",
    workdir: str = "runs/rotation",
    report_only: bool = False,
    stages: Sequence[str] = ("estimators", "remedies"),
    settings: Sequence[str] = ("photographs", "sonnet"),
    seeds: int = 3,
    jobs: int = 1,
) -> None:
    """Run the study of docs/rotation.md, and write the tables of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings, each of which is removed when it is finished.
      report_only: Run nothing; rebuild the document from the records.
      stages: estimators, remedies, and confirmation, which compares the finalists on seeds of its own.
      settings: What to train, by name.
      seeds: Trainings of each estimator and remedy.
      jobs: Trainings at once, each in a process of its own; on a GPU with XLA_PYTHON_CLIENT_PREALLOCATE=false.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(seeds=seeds, jobs=jobs)
    names = chosen(settings, list(SETTINGS), "settings")
    parts = chosen(stages, STAGES, "stages")
    results = Results(records / "results.jsonl")
    if not report_only:
        make_runs(results.unfinished(study_runs(parts, names, seeds)), results, workdir, measure_run, jobs)
    if finished := results.records():
        save_figure(docs / "rotation" / "scale.png", scale_figure(finished))
    print(write_document(docs / DOCUMENT, "The rotation trick", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.rotation", "--settings=sonnet --seeds=1")
