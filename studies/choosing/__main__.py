"""Which quantizer for which symptom: python -m studies.choosing [--only=PART] [--report_only]

Draws gradient fields, descends on Himmelblau's function, and trains small autoencoders from starts that a codebook
may not survive; then writes the pictures and the measured parts of docs/choosing-a-quantizer.md. Finished runs are
not repeated: the same command again continues an interrupted study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from studies.choosing import collapse, himmelblau
from studies.choosing import runs as choosing_runs
from studies.choosing.report import write_document, write_pictures
from studies.choosing.variants import GROUPS
from studies.common.names import chosen
from studies.common.plotting import matplotlib_module
from studies.common.records import unfinished
from vqjax.training.cli import run

PARTS = ("surfaces", "himmelblau", "collapse")


def study(
    output: Path,
    *,
    seeds: int,
    parts: Sequence[str] = PARTS,
    descent: himmelblau.Setting = himmelblau.Setting(),  # noqa: B008
    training: collapse.Setting = collapse.Setting(),  # noqa: B008
    variants: Sequence[str] | None = None,
) -> None:
    """Makes the runs that are missing.

    Args:
      output: Where records go, under ``results``.
      seeds: Trainings per variant and start.
      parts: Which of ``PARTS``.
      descent: Setting of the descents.
      training: Setting of the trainings.
      variants: Names of the trainings' variants; all by default.

    Raises:
      UserError: Records of other settings are in the way.
    """
    results = output / "results"
    # All of them first: what is in the way shall be told before minutes are spent.
    todo = {
        "surfaces": unfinished(choosing_runs.surface_runs(results)),
        "himmelblau": unfinished(choosing_runs.himmelblau_runs(results, descent)),
        "collapse": unfinished(choosing_runs.collapse_runs(results, training, seeds, variants)),
    }
    if "surfaces" in parts:
        choosing_runs.make_fields(todo["surfaces"])
    if "himmelblau" in parts:
        choosing_runs.make_descents(todo["himmelblau"], descent)
    if "collapse" in parts:
        choosing_runs.make_trainings(todo["collapse"], training)


def report(output: Path) -> None:
    """Rebuilds pictures and document from the records.

    Args:
      output: Directory of the study.
    """
    for path in [*write_pictures(output), write_document(output)]:
        print(path)


def define_flags() -> None:
    """Declares the flags of the command."""
    flags.DEFINE_string("output", "docs/choosing", "Directory of records and pictures; the document stands beside it.")
    flags.DEFINE_integer("seeds", 3, "Trainings per variant and start.", lower_bound=1)
    flags.DEFINE_multi_enum("only", list(PARTS), list(PARTS), "Parts to run; all by default.")
    flags.DEFINE_bool("report_only", False, "Run nothing; rebuild pictures and document from the records.")
    flags.DEFINE_integer("steps", collapse.Setting.steps, "Steps of each training.", lower_bound=1)
    flags.DEFINE_list("variants", [], "Variants to train, by name; all by default.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    variants = chosen(values.variants, [name for group in GROUPS.values() for name in group], "variants")
    matplotlib_module("figure")
    output = Path(values.output)
    if not values.report_only:
        study(
            output,
            seeds=values.seeds,
            parts=values.only,
            training=collapse.Setting(steps=values.steps),
            variants=variants,
        )
    report(output)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
