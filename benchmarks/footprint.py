"""Installed size and time of import beside a peer, in fresh environments: python -m benchmarks.footprint

Installs from the package index, as a user does: several gigabytes, as PyTorch brings CUDA on Linux.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import report

ROOT = Path(__file__).parents[1]
COLUMNS = ("package", "distributions", "own size (MB)", "size (MB)", "import of its framework (s)", "beyond it (s)")
_TIMES = 7
_MEASURE = """
import importlib, json, time
times = [time.perf_counter()]
for name in ({framework!r}, {module!r}):
    importlib.import_module(name)
    times.append(time.perf_counter())
print(json.dumps([later - earlier for earlier, later in zip(times, times[1:])]))
"""


class Package(NamedTuple):
    """What is installed and imported."""

    name: str
    requirement: str
    module: str
    framework: str


PACKAGES = (
    Package("vqjax", str(ROOT), "vqjax", "jax"),
    Package("vqjax[train]", f"{ROOT}[train]", "vqjax", "jax"),
    Package("vector-quantize-pytorch", "vector-quantize-pytorch==1.32.*", "vector_quantize_pytorch", "torch"),
)


def main() -> None:
    """Run the command."""
    with tempfile.TemporaryDirectory() as directory:
        places = {package: Path(directory, str(number)) for number, package in enumerate(PACKAGES)}
        for package, place in places.items():
            print(f"installing {package.name}", file=sys.stderr, flush=True)
            venv.create(place, with_pip=True)
            command = [place / "bin/python", "-m", "pip", "install", "--quiet", package.requirement]
            subprocess.run(command, check=True)
        rows = [{"package": package.name} | _sizes(package, place) for package, place in places.items()]
        times = {package: [] for package in PACKAGES}
        # By turns; the first round fills the caches of the disk and of bytecode.
        for number in range(_TIMES + 1):
            print(f"importing, round {number} of {_TIMES}", file=sys.stderr, flush=True)
            for package, place in places.items():
                taken = _import_times(package, place)
                times[package] += [taken] if number else []
    for row, package in zip(rows, PACKAGES, strict=True):
        row |= dict(zip(COLUMNS[4:], map(statistics.median, zip(*times[package], strict=True)), strict=True))
    report("footprint", rows, COLUMNS)


def _sizes(package: Package, place: Path) -> dict[str, Any]:
    """Numbers of an environment, without pip."""
    (packages,) = place.glob("lib/python*/site-packages")
    found = [path for path in packages.iterdir() if not path.name.startswith("pip")]
    own = packages / package.module
    distributions = sum(path.suffix == ".dist-info" for path in found)
    return dict(zip(COLUMNS[1:4], (distributions, _megabytes(own), sum(map(_megabytes, found))), strict=True))


def _megabytes(path: Path) -> float:
    """Size of a file or directory without bytecode."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and file.suffix != ".pyc") / 1e6


def _import_times(package: Package, place: Path) -> list[float]:
    code = _MEASURE.format(framework=package.framework, module=package.module)
    done = subprocess.run([place / "bin/python", "-c", code], check=True, capture_output=True, text=True, cwd=place)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
