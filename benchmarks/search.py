"""Benchmark of the nearest-code search, beside the matrix product in it: python -m benchmarks.search [CASE ...]

A case is TOKENSxCODESxDIM. Codes are compared with float64, on data far from the origin. On a GPU other chunk sizes and
product algorithms are measured too, and the fused kernel on a Hopper GPU.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
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
from vqjax.functional import search as nearest
from vqjax.functional.search import nearest_codes

CASES = {
    "cpu": ("8192x1024x256", "8192x8192x256", "65536x1024x8", "65536x16384x8", "8192x262144x8"),
    "gpu": ("8192x1024x256", "65536x16384x8", "65536x16384x256", "1048576x1024x64", "65536x262144x256"),
}
COLUMNS = ("case", "contender", "ms", "spread (ms)", "temporary MiB", "times one product", "wrong codes")
_CHECKED = 4096
_POINTS_AT_ONCE = 256


def main() -> None:
    """Measure the cases of the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="TOKENSxCODESxDIM; by default those of the device")
    rows = []
    for case in parser.parse_args().cases or CASES["cpu" if jax.default_backend() == "cpu" else "gpu"]:
        print(f"measuring {case}", file=sys.stderr, flush=True)
        rows += measure(case)
    report("search", rows, COLUMNS, by="case")


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
    if fits(tokens, num_codes, "plain"):
        searches["all distances at once"] = _compiled(_all_distances_at_once, z, codes)
    contenders = {
        name: lambda search=search: jax.block_until_ready(search(z, codes)) for name, search in searches.items()
    }
    if fits(tokens, num_codes, "product"):
        contenders["one matrix product, float32"] = matrix_product(np.asarray(z), num_codes)
    timings = by_turns(contenders)
    wrong = _wrong_codes(z, codes, searches)
    product = timings.get("one matrix product, float32")
    return [
        {
            "case": case,
            "contender": name,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "temporary MiB": _temporary_mib(searches[name]) if name in searches else None,
            "times one product": product and timing.median / product.median,
            "wrong codes": wrong.get(name),
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def _compiled(search: Callable[[jax.Array, jax.Array], jax.Array], z: jax.Array, codes: jax.Array) -> Compiled:
    # JAX keeps the branches for platforms as they were traced first, whatever they read since.
    jax.clear_caches()
    return jax.jit(lambda z, codes: search(z, codes)).lower(z, codes).compile()


def _gpu_searches(z: jax.Array, codes: jax.Array) -> dict[str, Compiled]:
    searches = {}
    for precision in (nearest._PRECISION, DotAlgorithmPreset.TF32_TF32_F32_X3):

        def in_chunks(z: jax.Array, codes: jax.Array, precision: jax.lax.PrecisionLike = precision) -> jax.Array:
            return nearest._nearest_in_chunks(*nearest.centered(z, codes), precision)[1]

        searches[f"in chunks, {'float32' if precision == nearest._PRECISION else '3 TF32'}"] = _compiled(
            in_chunks, z, codes
        )
    if nearest._alone_on_a_hopper():
        from vqjax.functional import hopper  # imports Pallas

        for stages, delay in ((3, 0), (4, 1), (6, 1)):
            with mock.patch.multiple(hopper, _STAGES=stages, _DELAY=delay):
                searches[f"kernel, {stages} stages, {delay} under way"] = _compiled(nearest_codes, z, codes)
    return searches


def _temporary_mib(program: Compiled) -> float:
    return program.memory_analysis().temp_size_in_bytes / 2**20


def _all_distances_at_once(z: jax.Array, codes: jax.Array) -> jax.Array:
    squares = jnp.sum(z**2, -1, keepdims=True) + jnp.sum(codes**2, -1)[None]
    return jnp.argmin(squares - 2 * z @ codes.T, axis=-1)


def _wrong_codes(z: jax.Array, codes: jax.Array, searches: Mapping[str, Compiled]) -> dict[str, str]:
    """Count tokens with a code that is nearer in float64 by more than the precision of float32."""
    points, table = np.asarray(z[:_CHECKED], np.float64), np.asarray(codes, np.float64)
    squares = np.sum(table**2, -1)
    parts = np.split(points, range(_POINTS_AT_ONCE, len(points), _POINTS_AT_ONCE))
    nearest = np.concatenate([np.argmin(squares - 2 * part @ table.T, axis=-1) for part in parts])
    best = np.sum((points - table[nearest]) ** 2, -1)
    wrong = {}
    for name, search in searches.items():
        distance = np.sum((points - table[np.asarray(search(z, codes))[:_CHECKED]]) ** 2, -1)
        wrong[name] = f"{np.sum(distance > best * (1 + 1e-5))} of {len(points)}"
    return wrong


if __name__ == "__main__":
    main()
