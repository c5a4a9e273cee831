"""Study of docs/video.md: python -m studies.video [--estimators=NAMES] [--seeds=N]

Trains the TimeSformer of the rotation-trick paper's Table 5 at a size for two CPU cores, with and without its
discriminator, on clips of bundled photographs. Finished trainings are not repeated: the same command again continues an
interrupted study.
"""

import sys
from collections.abc import Sequence

from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.trainings import make_runs
from studies.video.grid import ESTIMATORS, SETTINGS
from studies.video.report import DOCUMENT, document_parts
from studies.video.runs import measure_run, study_runs
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/video",
    docs: str = "docs",
    workdir: str = "runs/video_study",
    report_only: bool = False,
    settings: Sequence[str] = tuple(SETTINGS),
    estimators: Sequence[str] = ESTIMATORS,
    seeds: int = 3,
    jobs: int = 1,
) -> None:
    """Run the study of docs/video.md, and write its table.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings, each of which is removed when it is finished.
      report_only: Run nothing; rebuild the document from the records.
      settings: What to train with each estimator, by name.
      estimators: Estimators, by name.
      seeds: Trainings of each.
      jobs: Trainings at once, each in a process of its own; on a GPU with XLA_PYTHON_CLIENT_PREALLOCATE=false.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(seeds=seeds, jobs=jobs)
    names = chosen(settings, list(SETTINGS), "settings"), chosen(estimators, list(ESTIMATORS), "estimators")
    results = Results(records / "results.jsonl")
    if not report_only:
        make_runs(results.unfinished(study_runs(*names, seeds)), results, workdir, measure_run, jobs)
    print(write_document(docs / DOCUMENT, "Tokenizers of video", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.video", "--settings=vqvae --seeds=1")
