"""Reproduction of the CIFAR-10 study: python -m studies.reproduction [--scale=NAME] [--tables=...] [--report_only]

Trains every row of the tables of the study, as its code does and corrected, and variants that it left out; then writes
docs/reproduction.md with its figures. Finished runs are not repeated, and interrupted ones continue after their last
epoch: the same command again goes on. CIFAR-10 is found through TFDS_DATA_DIR.
"""

import sys
from collections.abc import Sequence
from typing import Literal

from studies.common.command import chosen, local_paths
from studies.reproduction.layout import tsne_module
from studies.reproduction.report import write_report
from studies.reproduction.runs import BETAS, SCALES, TABLES, make_runs, table_runs
from vqjax.reporting.figures import matplotlib_module
from vqjax.runtime.workdir import exclusive
from vqjax.training.cli import run


def _short(number: str) -> str:
    """1.0 as 1; other text is left for `chosen` to refuse."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def main(
    *,
    records: str = "studies/reproduction",
    docs: str = "docs",
    report_only: bool = False,
    workdir: str = "runs/reproduction",
    scale: Literal[*SCALES] = "full",
    tables: Sequence[str] = (),
    betas: Sequence[str] = (),
) -> None:
    """Run the reproduction of the CIFAR-10 study, and write docs/reproduction.md.

    Args:
      records: Directory of results.jsonl.
      docs: Directory of the document and, in a directory of their own, its figures.
      report_only: Run nothing; rebuild document and figures from the records.
      workdir: Directory of the states of interrupted runs.
      scale: Size of the runs: full, five_epochs or small.
      tables: Tables to make; all by default.
      betas: Commitment weights of the table betas; all by default.
    """
    records, docs, workdir = local_paths(records=records, docs=docs, workdir=workdir)
    size, names = SCALES[scale], chosen(tables, list(TABLES), "tables")
    allowed = [f"{beta:g}" for beta in BETAS]
    weights = [float(beta) for beta in chosen([_short(beta) for beta in betas], allowed, "betas")]
    # Missing packages are reported before hours are spent.
    matplotlib_module("figure")
    if not report_only:
        tsne_module()
        directory = workdir / size.name
        with exclusive(directory):
            make_runs(table_runs(size, names, weights), records, size, directory)
    for path in write_report(records, docs):
        print(path)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.reproduction", "--scale=small --tables=betas")
