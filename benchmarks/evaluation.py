"""Inception features and a whole evaluation with them: python -m benchmarks.evaluation [--images=N]

Features of 32 images of 128 pixels beside pytorch-fid's, where it is installed; and N of them evaluated with all that
``vqjax eval --features`` measures, with the time that it takes and the most memory that is held.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import by_turns, peak_mib, report
from benchmarks.peers.available import installed
from studies.common.workers import alone
from vqjax.data import Batch
from vqjax.evaluation import ReconstructionFID, evaluate
from vqjax.evaluation.features import FeatureNetwork
from vqjax.models.inception import INPUT_SIZE, FIDInception
from vqjax.reporting.progress import progress_of

COLUMNS = ("case", "contender", "images/s", "seconds", "ours is faster by", "peak MiB")
_SIDE, _ROWS = 128, 32


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images of the whole evaluation")
    rows = measure_features()
    report("evaluation", rows, COLUMNS, by="case")
    rows.append(alone(measure_evaluation, parser.parse_args().images))
    report("evaluation", rows, COLUMNS, by="case")


def measure_features(seconds: float = 120.0) -> list[dict[str, Any]]:
    """Time the features of a batch by turns.

    Args:
      seconds: Time to spend.

    Returns:
      A row per contender.
    """
    contenders = {"vqjax": ours}
    if installed("pytorch_fid"):
        contenders["pytorch-fid"] = theirs
    timings = by_turns({name: make() for name, make in contenders.items()}, seconds=seconds)
    return [
        {
            "case": f"features of {_ROWS} images",
            "contender": name,
            "images/s": _ROWS / timing.median,
            "seconds": timing.median,
            "spread (s)": f"{timing.quarter:.3g} to {timing.three_quarters:.3g}",
            "repetitions": timing.repetitions,
            "ours is faster by": timing.median / timings["vqjax"].median,
            "peak MiB": alone(_peak, contenders[name]),
        }
        for name, timing in timings.items()
    ]


def measure_evaluation(images: int) -> dict[str, Any]:
    """Evaluate images with a reconstruction that costs nothing, in a process that does nothing else.

    Args:
      images: Number of images.

    Returns:
      A row.
    """
    metric = ReconstructionFID(network())
    began = time.perf_counter()
    result = []
    peak = peak_mib(
        lambda: result.append(
            evaluate(
                jax.tree_util.Partial(lambda batch: {"reconstruction": 0.9 * (batch["image"] / 127.5 - 1)}),
                _batches(images),
                [metric],
                progress=progress_of(images),
            )
        )
    )
    print(result[0].metrics, file=sys.stderr)
    seconds = time.perf_counter() - began
    return {
        "case": f"evaluation of {images} images",
        "contender": "vqjax",
        "images/s": images / seconds,
        "seconds": seconds,
        "peak MiB": peak,
    }


def network() -> FeatureNetwork:
    """The network of FID with random weights."""
    module = FIDInception()
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, INPUT_SIZE, INPUT_SIZE, 3)))
    return FeatureNetwork(module, variables, name="inception", weights="random numbers")


def ours() -> Callable[[], object]:
    """Return what computes the features of a batch here."""
    features = jax.jit(lambda network, images: network(images).pool)
    of_network, images = network(), _images(_ROWS)
    return lambda: np.asarray(features(of_network, images))


def theirs() -> Callable[[], object]:
    """Return what computes the features of a batch in pytorch-fid."""
    from benchmarks.peers.torch_inception import torch_features

    features, images = torch_features(), _images(_ROWS)
    return lambda: features(images)


def _peak(make: Callable[[], Callable[[], object]]) -> float:
    run = make()
    run()
    return peak_mib(lambda: [run() for _ in range(3)])


def _images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, _SIDE, _SIDE, 3), np.uint8)


def _batches(images: int) -> Iterator[Batch]:
    for start in range(0, images, _ROWS):
        yield {"image": _images(_ROWS, seed=start), "valid": np.arange(start, start + _ROWS) < images}


if __name__ == "__main__":
    main()
