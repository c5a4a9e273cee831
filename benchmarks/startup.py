"""Time from the command line to the first step: python -m benchmarks.startup [CONFIG ...]

Without arguments: every task, with its config for a CPU. The first start compiles everything; the others, of which the
median is given, find what it has compiled (vqjax/runtime/compilation.py). The processor's seconds, of all cores, say
what a start costs where other work makes it wait.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.measure import report
from benchmarks.trainer import ROOT, fields, start
from studies.tokenizers.grid import SETTINGS
from vqjax.reporting.writers import METRICS_FILE

COLUMNS = ("task", "start", "seconds to the first step", "seconds of all cores")
# Logged before the evaluation that follows it, and not together with the second.
_ONE_STEP = {"log_every": 1, "eval_every": 1, "tensorboard": False}
_POLL_SECONDS = 0.01
_WARM_STARTS = 5
# Those of a user, and of the tests, hold programs already; Python keeps bytecode unless it is told not to.
_NO_CACHES = {
    "JAX_COMPILATION_CACHE_DIR": None,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": None,
    "PYTHONDONTWRITEBYTECODE": None,
}


class Case(NamedTuple):
    """A training, and what it needs.

    Attributes:
      config: As for ``train.py``; ``{photographs}`` is a folder, ``{tokenizer}`` a run and ``{tokens}`` its tokens.
      changes: Fields of the config.
      quantizer: That of the tokenizer.
    """

    config: str
    changes: Mapping[str, object] = {}
    quantizer: str = "vq"


_TOKENS = "configs/generate.py:{},tokens={{tokens}},tokenizer={{tokenizer}}"
_NEXT_SCALE = {"model.name": "next_scale_transformer", "task.name": "next_scale"}

CASES = {
    "vqvae": Case("configs/quickstart.py"),
    "vqvae, sonnet": Case("configs/cifar10.py:sonnet"),
    "vqvae, study": Case("configs/cifar10.py"),
    "alternating": Case(
        "configs/quickstart.py",
        {"quantizer.codebook.name": "gradient", "quantizer.codebook.weight": 0.0, "task.name": "alternating"},
    ),
    "decoder_gradient": Case("configs/quickstart.py", {"task.name": "decoder_gradient"}),
    "vqgan": Case("configs/imagenette.py:tiny,folder={photographs}"),
    "vqgan, ViT-VQGAN": Case(
        "configs/vit_vqgan.py:folder={photographs}",
        dict(change.split("=", 1) for change in SETTINGS["vit_vqgan"].changes),
    ),
    "classification": Case("configs/classify_cifar10.py:small,vq"),
    "autoregressive": Case(_TOKENS.format("tiny")),
    "masked_tokens": Case(_TOKENS.format("tiny,masked")),
    "next_scale": Case(_TOKENS.format("tiny"), _NEXT_SCALE, "multi_scale_vq"),
    "vqvae, clips": Case("configs/video.py:tiny"),
    "vqvae, TimeSformer": Case("configs/video.py:tiny,model=timesformer"),
}
"""By the name of the task, and of its model where there are several."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="as for train.py; all tasks by default")
    parser.add_argument(
        "--photographs", default="data/imagenette", help="train/ and val/, for the tasks that need some"
    )
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=list(CASES), help="instead of all")
    options = parser.parse_args()
    rows = [{"task": config} | row for config in options.configs for row in measure(config)]
    if options.configs:
        report("startup", rows, COLUMNS, by="task")
    else:
        with tempfile.TemporaryDirectory() as directory:
            for name in options.tasks:
                given = needed(CASES[name], Path(options.photographs).absolute(), Path(directory))
                config, changes = CASES[name].config.format(**given), fields(CASES[name].changes)
                # As it is named here: paths are those of one machine.
                rows += [{"task": name, "config": CASES[name].config} | row for row in measure(config, *changes)]
                # After each, as all of them take a quarter of an hour.
                report("startup", rows, COLUMNS, by="task")


def needed(case: Case, photographs: Path, directory: Path) -> dict[str, Path]:
    """Make what a case needs.

    Args:
      case: The case.
      photographs: Folder of photographs.
      directory: Where to keep tokenizers and their tokens.

    Returns:
      Paths by the names in ``case.config``.
    """
    run, tokens = (directory / f"{kind}_{case.quantizer}" for kind in ("run", "tokens"))
    if "{tokens}" in case.config and not tokens.exists():
        # 8 x 8 tokens, as configs/generate.py:tiny expects.
        changes = {"num_steps": 1, "data.image_size": 32}
        if case.quantizer == "multi_scale_vq":
            changes |= {"quantizer.quantizer.num_codes": 512, "quantizer.scales": "1,2,4,8"}
        else:
            changes["quantizer.num_codes"] = 512
        config = f"--config=configs/quickstart.py:quantizer={case.quantizer}"
        for command in (
            ("train", config, *fields(changes), f"--workdir={run}"),
            ("tokens", f"--workdir={run}", f"--out={tokens}"),
        ):
            subprocess.run([sys.executable, "-m", "vqjax", *command], cwd=ROOT, check=True, capture_output=True)
    return {"photographs": photographs, "tokenizer": run, "tokens": tokens}


def measure(config: str, *overrides: str) -> list[dict[str, Any]]:
    """Start one config several times, the first time with an empty compilation cache.

    Args:
      config: As for ``train.py``.
      *overrides: Further arguments.

    Returns:
      A row for the first start, and one for the median of the others.

    Raises:
      RuntimeError: The trainer ended before its first step.
    """
    with tempfile.TemporaryDirectory() as directory:
        starts = []
        for number in range(1 + _WARM_STARTS):
            print(f"measuring {config}, start {number + 1} of {1 + _WARM_STARTS}", file=sys.stderr, flush=True)
            workdir, cache = Path(directory, str(number)), f"{directory}/cache"
            arguments = [f"--config={config}", *fields(_ONE_STEP), *overrides]
            began = time.perf_counter()
            process = start(workdir, *arguments, XDG_CACHE_HOME=cache, **_NO_CACHES)
            try:
                of_cores = _await_first_line(process, workdir / METRICS_FILE)
                starts.append((time.perf_counter() - began, of_cores))
            finally:
                process.kill()
                process.communicate()
    cold, *warm = starts
    row = dict(zip(COLUMNS[2:], np.median(warm, axis=0).tolist(), strict=True))
    spread = {"fastest": min(warm)[0], "slowest": max(warm)[0]}
    return [{"start": "cold", **dict(zip(COLUMNS[2:], cold, strict=True))}, {"start": "warm", **row, **spread}]


def _await_first_line(process: subprocess.Popen, file: Path) -> float:
    """Wait until a run has measured its first step, and return the processor's seconds that it took."""
    while not (file.exists() and file.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(
                f"{' '.join(process.args)} ended with status {process.returncode}:\n{process.stderr.read()}"
            )
        time.sleep(_POLL_SECONDS)
    taken = psutil.Process(process.pid).cpu_times()
    return taken.user + taken.system


if __name__ == "__main__":
    main()
