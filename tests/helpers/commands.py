"""The commands as their users run them, on a run that takes seconds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
TINY = [
    "--config.data.source=arrays",
    "--config.data.image_size=16",
    "--config.batch_size=8",
    "--config.model.width=8",
    "--config.model.latent_dim=4",
    "--config.quantizer.num_codes=16",
    "--config.log_every=10",
    "--config.eval_every=1000",
    "--config.tensorboard=false",
    "--config.optimizer.schedule=constant",
]


def start(
    script: str,
    *arguments: object,
    largest_file: int | None = None,
    terminal: int | None = None,
    outlives_terminal: bool = False,
    **environment: str,
) -> subprocess.Popen:
    """Starts ``train.py``, ``eval.py`` or ``vqjax``.

    ``largest_file`` in bytes limits files as a full disk does, and ``terminal`` is a pseudoterminal that the program
    runs in, in place of pipes.
    """
    program = ["-m", "vqjax"] if script == "vqjax" else [ROOT / script]
    command = [sys.executable, *program, *map(str, arguments)]
    if largest_file is not None:
        # In blocks of 512 bytes.
        command = ["sh", "-c", f'ulimit -f {largest_file // 512}; exec "$@"', "sh", *command]
    if terminal is not None:
        # The first terminal that the first process of a session opens becomes that of the session.
        ignored = "trap '' HUP; " if outlives_terminal else ""
        command = ["sh", "-c", f'{ignored}exec "$@" <>"$0" >&0 2>&0', os.ttyname(terminal), *command]
    return subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=terminal is not None,
    )


def call(script: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of :func:`start`."""
    process = start(script, *arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def save_images(directory: Path) -> Path:
    """64 random images to train on and 20 others."""
    generator = np.random.default_rng(0)
    splits = {
        split: generator.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
        for split, number in (("train", 64), ("test", 20))
    }
    np.savez(directory / "images.npz", **splits)
    return directory / "images.npz"
