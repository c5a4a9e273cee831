"""Benchmark of the ways to sum the latents of each code: python -m benchmarks.statistics [CASE ...]

A case is TOKENSxCODESxDIM. vqjax.functional.assign uses the scatter, the fastest on every backend measured so far.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import by_turns, report
from vqjax.functional.chunks import sum_in_chunks
from vqjax.functional.codebook import Assignment, assign

CASES = ("8192x1024x256", "65536x1024x64", "65536x16384x8", "65536x262144x8", "262144x1024x32")
COLUMNS = ("case", "tokens per code", "contender", "ms", "spread (ms)", "scatter is faster by", "temporary MiB")


def main() -> None:
    """Measure the cases of the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="TOKENSxCODESxDIM; several by default")
    rows = []
    for case in parser.parse_args().cases or CASES:
        print(f"measuring {case}", file=sys.stderr, flush=True)
        rows += measure(case, "even") + measure(case, "skewed")
    report("statistics", rows, COLUMNS, by="case")


def measure(case: str, tokens_per_code: str) -> list[dict[str, Any]]:
    """Time all contenders on one shape.

    Args:
      case: ``TOKENSxCODESxDIM``.
      tokens_per_code: ``"even"``, or ``"skewed"``: a quarter of the tokens choose one code, where writes collide.

    Returns:
      One row per contender.
    """
    tokens, num_codes, dim = map(int, case.split("x"))
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(tokens, dim)), jnp.float32)
    chosen = rng.integers(0, num_codes, tokens)
    if tokens_per_code == "skewed":
        chosen = np.where(rng.uniform(size=tokens) < 0.25, 0, chosen)
    indices = jnp.asarray(chosen, jnp.int32)
    ways = {"scatter": assign, "sorted segments": sorted_segments}
    if num_codes <= 16384:
        ways["products with one-hot rows"] = one_hot_products
    lowered = {name: jax.jit(way, static_argnums=2).lower(z, indices, num_codes) for name, way in ways.items()}
    compiled = {name: program.compile() for name, program in lowered.items()}
    if jax.default_backend() == "gpu":
        # A scatter adds in any order there, which no second run repeats.
        options = {"xla_gpu_deterministic_ops": True}
        compiled["scatter, deterministic"] = lowered["scatter"].compile(options)
    expected = compiled["scatter"](z, indices)
    for program in compiled.values():
        np.testing.assert_allclose(program(z, indices).sums, expected.sums, rtol=1e-3, atol=1e-2)
    timings = by_turns(
        {name: lambda program=program: jax.block_until_ready(program(z, indices)) for name, program in compiled.items()}
    )
    return [
        {
            "case": case,
            "tokens per code": tokens_per_code,
            "contender": name,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "scatter is faster by": timing.median / timings["scatter"].median,
            "temporary MiB": compiled[name].memory_analysis().temp_size_in_bytes / 2**20,
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def sorted_segments(z: jax.Array, indices: jax.Array, num_codes: int) -> Assignment:
    """Sort the tokens by code and sum each segment."""
    order = jnp.argsort(indices)
    segments = {"segment_ids": indices[order], "num_segments": num_codes, "indices_are_sorted": True}
    counts = jax.ops.segment_sum(jnp.ones_like(indices), **segments)
    return Assignment(counts.astype(jnp.float32), jax.ops.segment_sum(z[order], **segments))


def one_hot_products(z: jax.Array, indices: jax.Array, num_codes: int) -> Assignment:
    """Multiply one-hot rows with the latents, in chunks of tokens."""

    def of_chunk(tokens: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jax.nn.one_hot(tokens[:, 0].astype(jnp.int32), num_codes) * counted[:, None]
        sums = jnp.matmul(chosen.T, tokens[:, 1:], precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(chosen, axis=0), sums

    numbered = jnp.concatenate([indices[:, None].astype(jnp.float32), z], axis=1)
    return Assignment(*sum_in_chunks(of_chunk, numbered, jnp.ones(len(z)), num_codes))


if __name__ == "__main__":
    main()
