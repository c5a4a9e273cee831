"""Reproduction of the CIFAR-10 study: python -m studies.reproduction [--scale=NAME] [--tables=...] [--report_only]

Trains every row of the tables of the study, as its code does and corrected, and variants that it left out; then writes
docs/reproduction.md with its figures. Finished runs are not repeated, and interrupted ones continue after their last
epoch: the same command again goes on. CIFAR-10 is found through TFDS_DATA_DIR.
"""

import sys
from pathlib import Path

from absl import flags

from studies.common.command import chosen
from studies.common.command import define_flags as define_common_flags
from studies.common.plotting import matplotlib_module
from studies.reproduction.layout import tsne_module
from studies.reproduction.report import write_document
from studies.reproduction.runs import BETAS, SCALES, TABLES, make_runs, table_runs
from vqjax.runtime.workdir import exclusive
from vqjax.training.cli import run


def _short(number: str) -> str:
    """1.0 as 1; other text is left for `chosen` to refuse."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def define_flags() -> None:
    """Declares the flags of the command."""
    define_common_flags("reproduction")
    flags.DEFINE_string("workdir", "runs/reproduction", "Directory of the states of interrupted runs.")
    flags.DEFINE_string("scale", "full", f"Size of the runs: {', '.join(SCALES)}.")
    flags.DEFINE_list("tables", [], f"Tables to make: {', '.join(TABLES)}; all by default.")
    flags.DEFINE_list("betas", [], "Commitment weights of the table betas; all by default.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    records = Path(values.records)
    (scale,) = (SCALES[name] for name in chosen([values.scale], list(SCALES), "scale"))
    tables = chosen(values.tables, list(TABLES), "tables")
    allowed = [f"{beta:g}" for beta in BETAS]
    betas = [float(beta) for beta in chosen([_short(beta) for beta in values.betas], allowed, "betas")]
    # Missing packages are reported before hours are spent.
    matplotlib_module("figure")
    if not values.report_only:
        tsne_module()
        workdir = Path(values.workdir) / scale.name
        with exclusive(workdir):
            make_runs(table_runs(scale, tables, betas), records, scale, workdir)
    for path in write_document(records, Path(values.docs)):
        print(path)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
