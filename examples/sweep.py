"""A sweep over fields of a config: python examples/sweep.py

Every combination is a run of its own, in a directory that is named after it. The same command again continues where it
was interrupted, does not repeat what is finished, and trains what is new in the grid. Change the lines below, or call
`sweep`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqjax.reporting.tables import markdown_table
from vqjax.training.config import load_config
from vqjax.training.loop import train

CONFIG = "quickstart"
GRID = {"optimizer.learning_rate": [5e-4, 1e-3], "quantizer.num_codes": [128, 256]}
FIXED = {"num_steps": 1000, "keep_best": "psnr", "patience": 2}
METRICS = ("psnr", "usage_split", "perplexity_split")


def sweep(
    config: str, grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], metrics: Sequence[str], workdir: Path
) -> str:
    """Train all combinations of values, and return a table of their metrics, the best first."""
    rows = []
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, map(str, values), strict=True))
        name = "-".join(f"{field.rpartition('.')[2]}={value}" for field, value in changes.items())
        overrides = [f"--config.{field}={value}" for field, value in (fixed | changes).items()]
        result = train(load_config(config, overrides), workdir / name)
        rows.append((*changes.values(), *(f"{result.metrics[metric]:.4g}" for metric in metrics)))
    rows.sort(key=lambda row: float(row[len(grid)]), reverse=True)
    return markdown_table((*grid, *metrics), rows)


if __name__ == "__main__":
    print(sweep(CONFIG, GRID, FIXED, METRICS, Path("runs/sweep")))
