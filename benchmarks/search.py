"""The nearest-code search alone, beside the matrix product in it: python -m benchmarks.search [CASE ...]

A case is TOKENSxCODESxDIM. Also counts wrong codes against float64, on data far from the origin.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import by_turns, report
from benchmarks.peers.available import fits
from benchmarks.quantizer import matrix_product
from vqjax.nearest import nearest_codes

CASES = {
    "cpu": ("8192x1024x256", "8192x8192x256", "65536x1024x8", "65536x16384x8", "8192x262144x8"),
    "gpu": ("8192x1024x256", "65536x16384x8", "65536x16384x256", "1048576x1024x64", "65536x262144x256"),
}
COLUMNS = ("case", "contender", "ms", "spread (ms)", "temporary MiB", "times one product", "wrong codes")
_CHECKED = 4096


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="TOKENSxCODESxDIM; by default those of the device")
    rows = []
    for case in parser.parse_args().cases or CASES["cpu" if jax.default_backend() == "cpu" else "gpu"]:
        print(f"measuring {case}", file=sys.stderr, flush=True)
        rows += measure(case)
    report("search", rows, COLUMNS)


def measure(case: str) -> list[dict[str, Any]]:
    """Times the search on one shape.

    Args:
      case: ``TOKENSxCODESxDIM``.

    Returns:
      A row for the search, and one for each alternative that fits into memory.
    """
    tokens, num_codes, dim = map(int, case.split("x"))
    rng = np.random.default_rng(0)
    z, codes = (jnp.asarray(20 + rng.normal(size=(n, dim)), jnp.float32) for n in (tokens, num_codes))
    compiled = jax.jit(lambda z, codes: nearest_codes(z, codes)).lower(z, codes).compile()
    contenders = {"vqjax": lambda: jax.block_until_ready(compiled(z, codes))}
    if fits(tokens, num_codes, of_torch=False):
        at_once = jax.jit(_all_distances_at_once)
        contenders["all distances at once"] = lambda: jax.block_until_ready(at_once(z, codes))
        contenders["one matrix product, float32"] = matrix_product(np.asarray(z), num_codes)
    timings = by_turns(contenders)
    product = timings.get("one matrix product, float32")
    found = {"vqjax": compiled(z, codes)}
    if "all distances at once" in contenders:
        found["all distances at once"] = at_once(z, codes)
    return [
        {
            "case": case,
            "contender": name,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "temporary MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20 if name == "vqjax" else None,
            "times one product": product and timing.median / product.median,
            "wrong codes": _wrong(z, codes, found[name]) if name in found else None,
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def _all_distances_at_once(z: jax.Array, codes: jax.Array) -> jax.Array:
    squares = jnp.sum(z**2, -1, keepdims=True) + jnp.sum(codes**2, -1)[None]
    return jnp.argmin(squares - 2 * z @ codes.T, axis=-1)


def _wrong(z: jax.Array, codes: jax.Array, indices: jax.Array) -> str:
    """Tokens for which float64 knows a code that is nearer by more than float32 can tell."""
    chosen = np.asarray(indices)[:_CHECKED]
    points, table = np.asarray(z, np.float64)[:_CHECKED], np.asarray(codes, np.float64)
    squares = np.sum(table**2, -1)
    nearest = np.array([np.argmin(squares - 2 * table @ point) for point in points])
    distance = np.sum((points - table[chosen]) ** 2, -1)
    best = np.sum((points - table[nearest]) ** 2, -1)
    return f"{np.sum(distance > best * (1 + 1e-5))} of {len(points)}"


if __name__ == "__main__":
    main()
