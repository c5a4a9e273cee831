"""Growth of the cost of a quantizer's step: python -m benchmarks.scaling

With tokens, codes and features, one at a time around 16,384 tokens, 1,024 codes and 32 features; for a codebook of
2^18 codes of 256 features; and with the number of devices at a fixed global batch (on CPUs:
XLA_FLAGS=--xla_force_host_platform_device_count=8, which shows that it works, not how fast it is).
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.measure import by_turns, report
from benchmarks.quantizer import vqjax_quantizer
from vqjax import VectorQuantizer

CENTER = {"tokens": 16384, "codes": 1024, "dim": 32}
VARIED = {
    "tokens": (1024, 4096, 16384, 65536, 262144),
    "codes": (64, 256, 1024, 4096, 16384, 65536, 262144),
    "dim": (4, 8, 32, 128, 256),
}
LARGEST_CODEBOOK = {"tokens": 8192, "codes": 2**18, "dim": 256}
COLUMNS = ("varied", "tokens", "codes", "dim", "devices", "ms", "ns per token", "temporary MiB")


def main() -> None:
    """Run the command."""
    report("scaling", measure_all(), COLUMNS)


def measure_all() -> list[dict[str, Any]]:
    """Time all sizes, and all numbers of devices that are there."""
    rows = [measure(name, CENTER | {name: value}) for name, values in VARIED.items() for value in values]
    rows.append(measure("largest codebook", LARGEST_CODEBOOK))
    counts = [2**power for power in range(jax.device_count().bit_length())]
    return rows + [measure_devices(count) for count in counts if count > 1]


def measure(varied: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Time one shape on one device.

    Args:
      varied: Which size differs from the center.
      sizes: All of them.

    Returns:
      A row.
    """
    print(f"measuring {sizes}", file=sys.stderr, flush=True)
    rng = np.random.default_rng(0)
    z, slope = (rng.normal(size=(sizes["tokens"], sizes["dim"])).astype(np.float32) for _ in range(2))
    work, temporary = vqjax_quantizer(z, slope, sizes["codes"], "float32")
    return _row(varied, sizes, 1, work, temporary)


def measure_devices(count: int) -> dict[str, Any]:
    """Time the shape of the center with the batch split over devices.

    Args:
      count: Number of devices.

    Returns:
      A row.
    """
    print(f"measuring {count} devices", file=sys.stderr, flush=True)
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    z = jnp.asarray(np.random.default_rng(0).normal(size=(CENTER["tokens"], CENTER["dim"])), jnp.float32)
    quantizer = VectorQuantizer(num_codes=CENTER["codes"])
    variables = jax.device_put(quantizer.init(jax.random.key(0), z[:1]), NamedSharding(mesh, P()))
    tokens = jax.device_put(z, NamedSharding(mesh, P("data")))

    def step(variables, z):
        def loss(z):
            out, changed = quantizer.apply(variables, z, train=True, mutable=["codebook"])
            return jnp.sum(out.quantized) + out.loss, changed

        return jax.grad(loss, has_aux=True)(z)

    compiled = jax.jit(step).lower(variables, tokens).compile()
    work = lambda: jax.block_until_ready(compiled(variables, tokens))  # noqa: E731
    return _row("devices", CENTER, count, work, compiled.memory_analysis().temp_size_in_bytes)


def _row(varied: str, sizes: dict[str, int], devices: int, work: Any, temporary: int) -> dict[str, Any]:
    timing = by_turns({"vqjax": work}, seconds=2.0)["vqjax"]
    return {
        "varied": varied,
        **sizes,
        "devices": devices,
        "ms": 1e3 * timing.median,
        "ns per token": 1e9 * timing.median / sizes["tokens"],
        "temporary MiB": temporary / 2**20,
        "repetitions": timing.repetitions,
    }


if __name__ == "__main__":
    main()
