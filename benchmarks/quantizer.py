"""A training step of the quantizer beside its peers: python -m benchmarks.quantizer [CASE ...]

Forward with the rotation trick, gradient to the input, update of the moving averages. A case is TOKENSxCODESxDIM, with
`:bfloat16` for inputs of that type, which the peers do not take.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import by_turns, report
from benchmarks.peers.available import fits, installed
from vqjax import VectorQuantizer

CASES = {
    "cpu": ("8192x1024x256", "8192x8192x256", "65536x1024x8", "65536x16384x8", "8192x1024x256:bfloat16"),
    "gpu": (
        *("8192x1024x256", "65536x1024x64", "65536x16384x8", "65536x16384x256", "65536x16384x256:bfloat16"),
        *("1048576x1024x8", "65536x262144x8"),
    ),
}
COLUMNS = ("case", "contender", "ms", "spread (ms)", "ours is faster by", "temporary MiB", "times one product")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="TOKENSxCODESxDIM[:bfloat16]; by default those of the device")
    cases = parser.parse_args().cases or CASES["cpu" if jax.default_backend() == "cpu" else "gpu"]
    rows = []
    for case in cases:
        print(f"measuring {case}", file=sys.stderr, flush=True)
        rows += measure(case)
    report("quantizer", rows, COLUMNS, by="case")


def measure(case: str) -> list[dict[str, Any]]:
    """Time all contenders on one shape.

    Args:
      case: ``TOKENSxCODESxDIM`` with an optional ``:dtype``.

    Returns:
      A row per contender.
    """
    sizes, _, dtype = case.partition(":")
    tokens, codes, dim = map(int, sizes.split("x"))
    rng = np.random.default_rng(0)
    z, slope = (rng.normal(size=(tokens, dim)).astype(np.float32) for _ in range(2))
    work, temporary = vqjax_quantizer(z, slope, codes, dtype or "float32")
    contenders: dict[str, Callable[[], object]] = {"vqjax": work}
    if fits(tokens, codes, "product"):
        contenders["one matrix product, float32"] = matrix_product(z, codes)
    if not dtype:
        contenders |= _peers(z, slope, codes)
    timings = by_turns(contenders)
    product = timings.get("one matrix product, float32")
    return [
        {
            "case": case,
            "contender": name,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "ours is faster by": timing.median / timings["vqjax"].median,
            "temporary MiB": temporary / 2**20 if name == "vqjax" else None,
            "times one product": product and timing.median / product.median,
            "repetitions": timing.repetitions,
        }
        for name, timing in timings.items()
    ]


def vqjax_quantizer(z: np.ndarray, slope: np.ndarray, num_codes: int, dtype: str) -> tuple[Callable[[], None], int]:
    """One training step of ours.

    Args:
      z: Tokens ``[tokens, dim]``.
      slope: Gradient of the task with respect to the codes.
      num_codes: Size of the codebook.
      dtype: Of the tokens.

    Returns:
      A function that returns when the step is done, and the bytes of temporary memory of the compiled step.
    """
    quantizer = VectorQuantizer(num_codes=num_codes, estimator="rotation")
    tokens, weights = jnp.asarray(z, dtype), jnp.asarray(slope, dtype)
    variables = quantizer.init(jax.random.key(0), tokens[:1])

    def step(variables, z, slope):
        def loss(z):
            out, changed = quantizer.apply(variables, z, train=True, mutable=["codebook"])
            return jnp.sum(out.quantized * slope, dtype=jnp.float32) + out.loss, changed

        gradient, changed = jax.grad(loss, has_aux=True)(z)
        return variables | changed, gradient

    compiled = jax.jit(step, donate_argnums=0).lower(variables, tokens, weights).compile()
    held = [variables]

    def run() -> None:
        held[0], gradient = jax.block_until_ready(compiled(held[0], tokens, weights))
        del gradient

    return run, compiled.memory_analysis().temp_size_in_bytes


def matrix_product(z: np.ndarray, num_codes: int) -> Callable[[], object]:
    """The product of tokens and codes that every search contains, in float32 accuracy."""
    codes = jnp.ones((num_codes, z.shape[-1]))
    product = jax.jit(lambda z, codes: jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST))
    tokens = jnp.asarray(z)
    return lambda: jax.block_until_ready(product(tokens, codes))


def _peers(z: np.ndarray, slope: np.ndarray, codes: int) -> dict[str, Callable[[], object]]:
    contenders = {}
    if fits(len(z), codes, "plain"):
        from benchmarks.peers.plain_quantizer import plain_quantizer

        contenders["plain JAX, straight-through"] = plain_quantizer(z, slope, codes)
        if installed("haiku"):
            from benchmarks.peers.haiku_quantizer import haiku_quantizer

            contenders["dm-haiku, straight-through"] = haiku_quantizer(z, slope, codes)
    if installed("vector_quantize_pytorch") and fits(len(z), codes, "torch"):
        from benchmarks.peers.torch_quantizer import torch_quantizer

        contenders["vector-quantize-pytorch"] = torch_quantizer(z, slope, codes, compiled=False)
        contenders["vector-quantize-pytorch, torch.compile"] = torch_quantizer(z, slope, codes, compiled=True)
    return contenders


if __name__ == "__main__":
    main()
