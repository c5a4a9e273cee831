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
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

CONFIG = "quickstart"
GRID = {"optimizer.learning_rate": [5e-4, 1e-3], "quantizer.num_codes": [128, 256]}
FIXED = {"num_steps": 1000, "eval_every": 100, "checkpoint_every": 100, "keep_best": "psnr", "patience": 2}
METRICS = ("psnr", "usage_split", "perplexity_split")


def sweep(
    config: str, grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], metrics: Sequence[str], workdir: Path
) -> str:
    """Train all combinations of values, and return a table of the metrics of their best checkpoints, the best first."""
    rows, mode = [], fixed.get("keep_best_mode", "max")
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, map(str, values), strict=True))
        name = "-".join(f"{field.rpartition('.')[2]}={value}" for field, value in changes.items())
        overrides = [f"--config.{field}={value}" for field, value in (fixed | changes).items()]
        train(load_config(config, overrides), workdir / name)
        measured = evaluate_workdir(workdir / name, best=True).metrics
        rows.append((measured[fixed["keep_best"]], (*changes.values(), *(f"{measured[name]:.4g}" for name in metrics))))
    rows.sort(key=lambda row: row[0], reverse=mode == "max")
    return markdown_table((*grid, *metrics), [row for _, row in rows])


if __name__ == "__main__":
    print(sweep(CONFIG, GRID, FIXED, METRICS, Path("runs/sweep")))
