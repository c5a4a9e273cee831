"""Study of docs/choosing-a-quantizer.md: python -m studies.choosing [--only=PART] [--report_only]

Draws gradient fields, descends on Himmelblau's function, and trains small autoencoders from initial codes that a
codebook may not survive; then writes the figures and the measured parts of the document. Finished runs are not
repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from studies.choosing import collapse, himmelblau
from studies.choosing import runs as choosing_runs
from studies.choosing.report import PARTS, write_document, write_figures
from studies.choosing.variants import GROUPS
from studies.common.command import chosen
from studies.common.command import define_flags as define_common_flags
from studies.common.plotting import matplotlib_module
from studies.common.records import Results
from vqjax.training.cli import run


def study(
    results: Results, parts: Sequence[str], training: collapse.Setting, seeds: int, variants: Sequence[str]
) -> None:
    """Makes the runs that are missing.

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
    """Rebuilds figures and document from the records, and prints their paths.

    Args:
      results: Records of the study.
      docs: Directory of all documents.
    """
    for path in [*write_figures(results, docs), write_document(results, docs)]:
        print(path)


def define_flags() -> None:
    """Declares the flags of the command."""
    define_common_flags("choosing")
    flags.DEFINE_integer("seeds", 3, "Trainings per variant and initial codes.", lower_bound=1)
    flags.DEFINE_multi_enum("only", list(PARTS), list(PARTS), "Parts to run; all by default.")
    flags.DEFINE_integer("steps", collapse.Setting.steps, "Steps of each training.", lower_bound=1)
    flags.DEFINE_list("variants", [], "Variants to train, by name; all by default.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    variants = chosen(values.variants, [name for group in GROUPS.values() for name in group], "variants")
    # A missing matplotlib is reported before minutes are spent.
    matplotlib_module("figure")
    results = Results(Path(values.records) / "results.jsonl")
    if not values.report_only:
        study(results, values.only, collapse.Setting(steps=values.steps), values.seeds, variants)
    report(results, Path(values.docs))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
