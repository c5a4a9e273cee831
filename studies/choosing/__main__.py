"""Study of docs/choosing-a-quantizer.md: python -m studies.choosing [--only=PART] [--report_only]

Draws gradient fields, descends on Himmelblau's function, and trains small autoencoders from initial codes that a
codebook may not survive; then writes the figures and the measured parts of the document. Finished runs are not
repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from studies.choosing import collapse, himmelblau
from studies.choosing import runs as choosing_runs
from studies.choosing.report import DOCUMENT, PARTS, document_parts, write_figures
from studies.choosing.variants import GROUPS
from studies.common.command import check_positive, chosen, local_paths
from studies.common.document import write_document
from studies.common.records import Results
from vqjax.reporting.figures import matplotlib_module
from vqjax.training.cli import run


def study(
    results: Results, parts: Sequence[str], training: collapse.Setting, seeds: int, variants: Sequence[str]
) -> None:
    """Make the runs that are missing.

    Args:
      results: Records of the study.
      parts: Names from ``PARTS``.
      training: Setting of the trainings.
      seeds: Trainings per variant and initial codes.
      variants: Names of the trainings' variants.

    Raises:
      UserError: A record has other settings than its run.
    """
    descent = himmelblau.Setting()
    runs = {
        "surfaces": choosing_runs.surface_runs(),
        "himmelblau": choosing_runs.himmelblau_runs(descent),
        "collapse": choosing_runs.collapse_runs(training, seeds, variants),
    }
    # Records of all parts are checked before minutes are spent on the first.
    unfinished = {part: results.unfinished(of_part) for part, of_part in runs.items()}
    if "surfaces" in parts:
        choosing_runs.make_fields(unfinished["surfaces"], results)
    if "himmelblau" in parts:
        choosing_runs.make_descents(unfinished["himmelblau"], results, descent)
    if "collapse" in parts:
        choosing_runs.make_collapses(unfinished["collapse"], results, training)


def report(results: Results, docs: Path) -> None:
    """Rebuild figures and document from the records, and print their paths.

    Args:
      results: Records of the study.
      docs: Directory of all documents.
    """
    document = write_document(docs / DOCUMENT, "Choosing a quantizer: results", document_parts(results))
    for path in [*write_figures(results, docs), document]:
        print(path)


def main(
    *,
    records: str = "studies/choosing",
    docs: str = "docs",
    report_only: bool = False,
    only: Sequence[str] = (),
    seeds: int = 3,
    steps: int = collapse.Setting.steps,
    variants: Sequence[str] = (),
) -> None:
    """Run the study of docs/choosing-a-quantizer.md, and write its figures and measured parts.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document and, in a directory of their own, its figures.
      report_only: Run nothing; rebuild document and figures from the records.
      only: Parts to run; all by default.
      seeds: Trainings per variant and initial codes.
      steps: Steps of each training.
      variants: Variants to train, by name; all by default.
    """
    records, docs = local_paths(records=records, docs=docs)
    check_positive(seeds=seeds, steps=steps)
    parts = chosen(only, list(PARTS), "only")
    names = chosen(variants, [name for group in GROUPS.values() for name in group], "variants")
    # A missing matplotlib is reported before minutes are spent.
    matplotlib_module("figure")
    results = Results(records / "results.jsonl")
    if not report_only:
        study(results, parts, collapse.Setting(steps=steps), seeds, names)
    report(results, docs)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.choosing", "--only=collapse --variants=rotation --seeds=1")
