"""The CIFAR-10 study again: python -m studies.reproduction [--scale=NAME] [--tables=...] [--report_only]

Trains what the study's tables and figures show, exactly as its code does it and corrected, and what it left out; then
writes docs/reproduction.md with its figures. Finished runs are not repeated, and interrupted ones continue: the same
command again goes on. CIFAR-10 is found through TFDS_DATA_DIR.
"""

import sys
from pathlib import Path

from absl import flags

from studies.common.names import chosen
from studies.common.plotting import matplotlib_module
from studies.reproduction.codebook_layout import require_layout
from studies.reproduction.report import write_document
from studies.reproduction.runs import BETAS, SCALES, TABLES, make_runs, study_runs
from vqjax.runtime.workdir import exclusive
from vqjax.training.cli import run

COMMAND = "python -m studies.reproduction"


def _short(number: str) -> str:
    """1.0 as 1; what is no number is left to be refused."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def define_flags() -> None:
    """Declares the flags of the command."""
    flags.DEFINE_string("output", "docs/reproduction", "Directory of records and figures; the document stands beside.")
    flags.DEFINE_string("workdir", "runs/reproduction", "Where interrupted runs are kept.")
    flags.DEFINE_string("scale", "full", f"How much of the study to run: {', '.join(SCALES)}.")
    flags.DEFINE_list("tables", [], f"Which tables: {', '.join(TABLES)}; all by default.")
    flags.DEFINE_list("betas", [], "Which commitment weights of the table betas; all by default.")
    flags.DEFINE_bool("report_only", False, "Run nothing; rebuild document and figures from the records.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    output = Path(values.output)
    (scale_name,) = chosen([values.scale], list(SCALES), "scale")
    tables = chosen(values.tables, list(TABLES), "tables")
    allowed = [f"{beta:g}" for beta in BETAS]
    betas = [float(beta) for beta in chosen([_short(beta) for beta in values.betas], allowed, "betas")]
    # Before hours are spent.
    matplotlib_module("figure")
    if not values.report_only:
        require_layout()
        scale, results = SCALES[scale_name], output / scale_name
        runs = study_runs(results, scale, tables, betas)
        workdir = Path(values.workdir) / scale_name
        with exclusive(workdir):
            make_runs(runs, results, scale, workdir)
    for path in write_document(output):
        print(path)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
