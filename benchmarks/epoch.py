"""Training end to end, with data, logging, evaluation and checkpoints: python -m benchmarks.epoch [CONFIG] [--steps=N]

Prints images per second of the whole command after its first step, beside those of the compiled step alone
(python -m benchmarks.train_step), so that what they differ by is the price of everything around it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import report

_ROOT = Path(__file__).parents[1]
COLUMNS = ("config", "steps", "seconds", "seconds after the first step", "images/s after the first step")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/cifar10.py:sonnet", help="as for train.py")
    parser.add_argument("--steps", type=int, default=1562, help="by default an epoch of CIFAR-10 in batches of 32")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "train.py", f"--config={arguments.config}", f"--workdir={directory}/run"]
        command += [f"--config.num_steps={arguments.steps}", f"--config.batch_size={arguments.batch_size}"]
        environment = os.environ | {"XDG_CACHE_HOME": f"{directory}/cache"}
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        first = None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if first is None and re.match(r"step \d+/", line):
                first = (int(line.split()[1].split("/")[0]), time.perf_counter())
        if process.wait() != 0:
            sys.exit(f"train.py ended with status {process.returncode}.")
        seconds, after = time.perf_counter() - began, time.perf_counter() - first[1]
    row = {
        "config": arguments.config,
        "steps": arguments.steps,
        "seconds": seconds,
        "seconds after the first step": after,
        "images/s after the first step": (arguments.steps - first[0]) * arguments.batch_size / after,
    }
    report("epoch", [row], COLUMNS)


if __name__ == "__main__":
    main()
