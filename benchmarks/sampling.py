"""Tokens drawn per second beside a PyTorch loop of the same model: python -m benchmarks.sampling [--batch=N] [--dim=N]

A causal transformer over 8 x 8 tokens of 512 codes with the keys and values of the tokens before, and a whole batch of
images at once; and how many programs the same call compiles with other seeds and classes.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import by_turns, report
from benchmarks.peers.available import installed
from vqjax.models.transformer import CausalTransformer
from vqjax.tasks.autoregressive import AutoregressiveTask
from vqjax.tasks.second_stage import TRANSFORMER

COLUMNS = ("batch", "contender", "tokens/s", "ms", "spread (ms)", "ours is faster by", "programs")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    parser.add_argument("--dim", type=int, default=384, help="features of a token")
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    options = parser.parse_args()
    report("sampling", measure(options.batch, options.dim, options.depth), COLUMNS)


def measure(batch: int, dim: int, depth: int, seconds: float = 120.0) -> list[dict[str, Any]]:
    """Time all contenders.

    Args:
      batch: Images at once.
      dim: Features of a token.
      depth: Blocks.
      seconds: Time to spend.

    Returns:
      A row per contender.
    """
    model = CausalTransformer(512, (8, 8), 10, dim, depth, heads=dim // 64)
    classes = np.arange(batch) % 10
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64), jnp.int32), jnp.zeros(1, jnp.int32))
    ours, programs = our_sampler(model, variables, classes)
    contenders: dict[str, Callable[[], object]] = {"vqjax": ours}
    if installed("torch"):
        from benchmarks.peers.torch_transformer import torch_sampler

        contenders["PyTorch"] = torch_sampler(model, variables["params"], classes, compiled=False)
        contenders["PyTorch, torch.compile"] = torch_sampler(model, variables["params"], classes, compiled=True)
    timings = by_turns(contenders, seconds=seconds)
    return [
        {
            "batch": batch,
            "contender": name,
            "tokens/s": batch * model.positions / timing.median,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "ours is faster by": timing.median / timings["vqjax"].median,
            "programs": programs() if name == "vqjax" else None,
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def our_sampler(
    model: CausalTransformer, variables: dict[str, Any], classes: np.ndarray
) -> tuple[Callable[[], None], Callable[[], int]]:
    """Return what draws the tokens of a batch, with another seed each time, and the number of programs so far.

    Args:
      model: The model.
      variables: Its variables.
      classes: Class of each image.
    """
    task, seeds = AutoregressiveTask(model, optax.identity()), iter(range(10**9))
    draw, given = jax.jit(task.sample), jnp.asarray(classes)

    def run() -> None:
        seed = next(seeds)
        jax.block_until_ready(draw({TRANSFORMER: variables}, jax.random.key(seed), jnp.roll(given, seed)))

    return run, draw._cache_size


if __name__ == "__main__":
    main()
