"""Time from the command line to the first step: python -m benchmarks.startup [CONFIG ...]

The first start compiles everything; the second finds what the first has compiled (vqjax/runtime/compilation.py).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from benchmarks.trainer import fields, train

COLUMNS = ("config", "start", "seconds to the first step", "seconds to the end of one step")
_ONE_STEP = fields({"num_steps": 1, "log_every": 1, "tensorboard": False})


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/quickstart.py"], help="as for train.py")
    report("startup", [row for config in parser.parse_args().configs for row in measure(config)], COLUMNS)


def measure(config: str, *overrides: str) -> list[dict[str, Any]]:
    """Start one config three times, the first time with an empty compilation cache.

    Args:
      config: As for ``train.py``.
      *overrides: Further arguments.

    Returns:
      A row per start.
    """
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ("cold", "warm", "warm again"):
            print(f"measuring {config}, {name}", file=sys.stderr, flush=True)
            arguments = [f"--config={config}", *_ONE_STEP, *overrides]
            taken = train(Path(directory, name), *arguments, XDG_CACHE_HOME=f"{directory}/cache")
            seconds = {
                "seconds to the first step": taken.first_seconds,
                "seconds to the end of one step": taken.seconds,
            }
            rows.append({"config": config, "start": name} | seconds)
    return rows


if __name__ == "__main__":
    main()
