"""From the command line to the first step, twice: python -m benchmarks.startup [CONFIG ...]

The first start compiles everything; the second finds what the first has compiled (vqjax/runtime/compilation.py).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import report

_ROOT = Path(__file__).parents[1]
COLUMNS = ("config", "start", "seconds to the first step", "seconds to the end of one step")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/quickstart.py"], help="as for train.py")
    rows = []
    for config in parser.parse_args().configs:
        with tempfile.TemporaryDirectory() as directory:
            for name in ("cold", "warm", "warm again"):
                print(f"measuring {config}, {name}", file=sys.stderr, flush=True)
                rows.append({"config": config, "start": name} | _start(config, Path(directory), name))
    report("startup", rows, COLUMNS)


def _start(config: str, directory: Path, name: str) -> dict[str, Any]:
    """Runs one step, and looks for its line in what the trainer says."""
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={directory / name}"]
    command += ["--config.num_steps=1", "--config.log_every=1", "--config.tensorboard=false"]
    environment = os.environ | {"XDG_CACHE_HOME": str(directory / "cache")}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    first, said = None, []
    for line in process.stderr:
        said.append(line)
        if first is None and line.startswith("step 1/"):
            first = time.perf_counter() - began
    if process.wait() != 0:
        sys.exit("".join(said))
    return {"seconds to the first step": first, "seconds to the end of one step": time.perf_counter() - began}


if __name__ == "__main__":
    main()
