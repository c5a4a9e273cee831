"""Models trained on other numbers of devices and processes: python -m benchmarks.agreement [--steps=50] [--seeds=3]

Trains on one device, on eight, and in two and four processes of one device each, and compares the last checkpoints.
Needs CPUs only.
"""

import argparse
import itertools
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import report
from benchmarks.trainer import fields, start
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import materialize, to_model_range
from vqjax.data.photos import photo_splits
from vqjax.models.tokenizer import Tokenizer

ARRANGEMENTS = {
    "1 device": (1, 1),
    "8 devices": (1, 8),
    "2 processes": (2, 1),
    "4 processes": (4, 1),
    "4 processes of 2 devices": (4, 2),
}
"""Processes, and devices of each; the first is what the others are compared with."""

SIZES = {
    "small": {"width": 8, "latent_dim": 4, "image_size": 16, "batch_size": 16, "num_codes": 16},
    "larger": {"width": 32, "latent_dim": 8, "image_size": 32, "batch_size": 32, "num_codes": 64},
}
"""Of model and batch: the more is decided by comparisons, the sooner one of them is decided by rounding."""

COLUMNS = ("size", "seed", "arrangement", "largest difference of a parameter", "counts differ", "indices differ", "of")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for size, seed in itertools.product(SIZES, range(options.seeds)):
        with tempfile.TemporaryDirectory() as directory:
            tokenizers = {}
            for name, (processes, devices) in ARRANGEMENTS.items():
                print(f"training {size}, seed {seed}, {name}", file=sys.stderr, flush=True)
                workdir = Path(directory) / name.replace(" ", "_")
                settings = _settings(size) | {"num_steps": options.steps, "seed": seed}
                _train(processes, devices, workdir, fields(settings))
                tokenizers[name] = load_tokenizer(workdir)
        images = _heldout_images(SIZES[size]["image_size"])
        first, *others = tokenizers
        rows += [
            {"size": size, "seed": seed, "arrangement": name} | _compare(tokenizers[first], tokenizers[name], images)
            for name in others
        ]
    report("agreement", rows, COLUMNS)


def _settings(size: str) -> dict[str, Any]:
    of_size = SIZES[size]
    return {
        "model.name": "sonnet",
        "model.width": of_size["width"],
        "model.latent_dim": of_size["latent_dim"],
        "data.image_size": of_size["image_size"],
        "batch_size": of_size["batch_size"],
        "quantizer.num_codes": of_size["num_codes"],
        "quantizer.codebook.replace.below": 0.01,
        "task.kmeans_init": True,
        "optimizer.learning_rate": 2e-4,
        "optimizer.schedule": "constant",
        "log_every": 10,
        "eval_every": 10**6,
        "tensorboard": False,
    }


def _heldout_images(image_size: int) -> jax.Array:
    return to_model_range(materialize(photo_splits(image_size).eval)["image"])


def _train(processes: int, devices: int, workdir: Path, settings: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    place = [f"--coordinator_address={address}", f"--num_processes={processes}"]
    started = [
        start(workdir, *settings, *(([*place, f"--process_id={i}"]) if processes > 1 else []), **environment)
        for i in range(processes)
    ]
    printed = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        sys.exit("".join(printed))


def _compare(one: Tokenizer, other: Tokenizer, images: jax.Array) -> dict[str, Any]:
    differences = jax.tree.map(
        lambda a, b: float(np.max(np.abs(a - b))), one.variables["params"], other.variables["params"]
    )
    counts = [tokenizer.variables["codebook"]["quantizer"]["counts"] for tokenizer in (one, other)]
    indices = [np.asarray(tokenizer.encode(images)) for tokenizer in (one, other)]
    return {
        "largest difference of a parameter": max(jax.tree.leaves(differences)),
        "counts differ": int(np.sum(counts[0] != counts[1])),
        "indices differ": int(np.sum(indices[0] != indices[1])),
        "of": indices[0].size,
    }


if __name__ == "__main__":
    main()
