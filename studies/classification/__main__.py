"""Study of docs/classification.md: python -m studies.classification [--models=NAMES] [--seeds=N] [--scale=NAME]

Trains classifiers of CIFAR-10 without a quantizer, and with one in their middle under the remedies of vqtorch, and lets
points of the plane descend with these. Finished trainings are not repeated: the same command again continues an
interrupted study.
"""

import sys
import time
from collections.abc import Sequence
from typing import Literal

from studies.choosing.figures import himmelblau_figure
from studies.classification.grid import MODELS
from studies.classification.report import DOCUMENT, FIGURE, descents, document_parts
from studies.classification.runs import measure_run, study_runs
from studies.classification.trajectories import VARIANTS, descent_runs, measure_descent
from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from studies.common.trainings import make_runs
from vqjax.reporting.figures import save_figure
from vqjax.training.cli import run


def main(
    *,
    records: str = "studies/classification",
    docs: str = "docs",
    workdir: str = "runs/classification",
    report_only: bool = False,
    models: Sequence[str] = MODELS,
    seeds: int = 3,
    scale: Literal["cpu", "short", "full"] = "cpu",
    jobs: int = 1,
) -> None:
    """Run the study of docs/classification.md, and write the tables of the document.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document.
      workdir: Directory of the trainings, each of which is removed when it is finished.
      report_only: Run nothing; rebuild the document from the records.
      models: resnet18, alexnet and vit.
      seeds: Trainings of ResNet-18 with each remedy; the others have one.
      scale: cpu, for two cores; short (30 epochs) and full, for a GPU.
      jobs: Trainings at once, each in a process of its own; on a GPU with XLA_PYTHON_CLIENT_PREALLOCATE=false.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    check_positive(seeds=seeds, jobs=jobs)
    names = chosen(models, list(MODELS), "models")
    results = Results(records / "results.jsonl")
    if not report_only:
        for descent in results.unfinished(descent_runs()):
            began = time.monotonic()
            results.add(descent, measure_descent(VARIANTS[descent.settings["variant"]]), time.monotonic() - began)
        make_runs(results.unfinished(study_runs(names, seeds, scale)), results, workdir, measure_run, jobs)
    if found := descents(results):
        save_figure(docs / FIGURE, himmelblau_figure(found))
    print(write_document(docs / DOCUMENT, "Quantizers inside classifiers", document_parts(results)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.classification", "--models=resnet18 --seeds=1")
