"""Benchmark of the nearest-code search, beside the matrix product in it: python -m benchmarks.search [CASE ...]

A case is TOKENSxCODESxDIM. Codes are compared with float64, on data far from the origin. On a GPU other chunk sizes and
product algorithms are measured too, and the fused kernel on a Hopper GPU.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import DotAlgorithmPreset
from jax.stages import Compiled

from benchmarks.measure import by_turns, report
from benchmarks.peers.available import fits
from benchmarks.quantizer import matrix_product
from vqjax.functional import chunks
from vqjax.functional import search as nearest
from vqjax.functional.search import nearest_codes

CASES = {
    "cpu": ("8192x1024x256", "8192x8192x256", "65536x1024x8", "65536x16384x8", "8192x262144x8"),
    "gpu": ("8192x1024x256", "65536x16384x8", "65536x16384x256", "1048576x1024x64", "65536x262144x256"),
}
COLUMNS = ("case", "contender", "ms", "spread (ms)", "temporary MiB", "times one product", "wrong codes")
_CHECKED = 4096


def main() -> None:
    """Measure the cases of the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="TOKENSxCODESxDIM; by default those of the device")
    rows = []
    for case in parser.parse_args().cases or CASES["cpu" if jax.default_backend() == "cpu" else "gpu"]:
        print(f"measuring {case}", file=sys.stderr, flush=True)
        rows += measure(case)
    report("search", rows, COLUMNS)


def measure(case: str) -> list[dict[str, Any]]:
    """Time the search on one shape.

    Args:
      case: ``TOKENSxCODESxDIM``.

    Returns:
      One row per contender that fits into memory.
    """
    tokens, num_codes, dim = map(int, case.split("x"))
    rng = np.random.default_rng(0)
    z, codes = (jnp.asarray(20 + rng.normal(size=(n, dim)), jnp.float32) for n in (tokens, num_codes))
    searches = {"vqjax": _compiled(nearest_codes, z, codes)}
    if jax.default_backend() == "gpu":
        searches |= _gpu_searches(z, codes)
    if fits(tokens, num_codes, of_torch=False):
        searches["all distances at once"] = _compiled(_all_distances_at_once, z, codes)
    contenders = {
        name: lambda search=search: jax.block_until_ready(search(z, codes)) for name, search in searches.items()
    }
    if fits(tokens, num_codes, of_torch=False):
        contenders["one matrix product, float32"] = matrix_product(np.asarray(z), num_codes)
    timings = by_turns(contenders)
    product = timings.get("one matrix product, float32")
    return [
        {
            "case": case,
            "contender": name,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "temporary MiB": _temporary_mib(searches[name]) if name in searches else None,
            "times one product": product and timing.median / product.median,
            "wrong codes": _wrong_codes(z, codes, searches[name](z, codes)) if name in searches else None,
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def _compiled(search: Callable[[jax.Array, jax.Array], jax.Array], z: jax.Array, codes: jax.Array) -> Compiled:
    return jax.jit(lambda z, codes: search(z, codes)).lower(z, codes).compile()


def _gpu_searches(z: jax.Array, codes: jax.Array) -> dict[str, Compiled]:
    searches = {}
    for power in (20, 26, 29):
        with mock.patch.object(chunks, "CHUNK_ELEMENTS", 2**power):
            searches[f"chunks of 2^{power}"] = _compiled(nearest_codes, z, codes)
    for preset in (DotAlgorithmPreset.BF16_BF16_F32_X6, DotAlgorithmPreset.TF32_TF32_F32_X3):
        with mock.patch.object(nearest, "_PRECISION", preset), mock.patch.object(chunks, "CHUNK_ELEMENTS", 2**26):
            searches[f"chunks of 2^26, {preset.name}"] = _compiled(nearest_codes, z, codes)
    if jax.devices()[0].compute_capability == "9.0":
        from vqjax.functional import hopper  # imports Pallas

        try:
            searches["Hopper kernel"] = _compiled(hopper.nearest_codes, z, codes)
        except jax.errors.JaxRuntimeError as error:
            print(f"the Hopper kernel does not compile: {error}", file=sys.stderr, flush=True)
    return searches


def _temporary_mib(program: Compiled) -> float:
    return program.memory_analysis().temp_size_in_bytes / 2**20


def _all_distances_at_once(z: jax.Array, codes: jax.Array) -> jax.Array:
    squares = jnp.sum(z**2, -1, keepdims=True) + jnp.sum(codes**2, -1)[None]
    return jnp.argmin(squares - 2 * z @ codes.T, axis=-1)


def _wrong_codes(z: jax.Array, codes: jax.Array, indices: jax.Array) -> str:
    """Count tokens with a code that is nearer in float64 by more than the precision of float32."""
    chosen = np.asarray(indices)[:_CHECKED]
    points, table = np.asarray(z, np.float64)[:_CHECKED], np.asarray(codes, np.float64)
    squares = np.sum(table**2, -1)
    nearest = np.array([np.argmin(squares - 2 * table @ point) for point in points])
    distance = np.sum((points - table[chosen]) ** 2, -1)
    best = np.sum((points - table[nearest]) ** 2, -1)
    return f"{np.sum(distance > best * (1 + 1e-5))} of {len(points)}"


if __name__ == "__main__":
    main()
