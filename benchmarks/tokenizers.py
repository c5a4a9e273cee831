"""Training steps of the image tokenizers against their discriminators: python -m benchmarks.tokenizers [CASE ...]

VQGAN f16 and the small ViT-VQGAN at 256 pixels in bfloat16 with a PatchGAN, images on the device; without a GPU, VQGAN
f16 with 64 channels at 64 and 128 pixels and ViT-VQGAN with four blocks at 64 in float32. Beside them the original
PyTorch modules, where clones of taming-transformers and enhancing-transformers are on ``PYTHONPATH``.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8

from benchmarks.measure import by_turns, compiled_step, peak_mib, report
from benchmarks.peers.available import installed
from studies.common.workers import alone
from vqjax import GradientCodebook, VectorQuantizer
from vqjax.models.discriminators import PatchGAN
from vqjax.models.registry import build
from vqjax.tasks.vqgan import VQGANTask

COLUMNS = ("case", "contender", "images/s", "ms", "spread (ms)", "ours is faster by", "TFLOP/s", "temporary MiB")
CPU_COLUMNS = (*COLUMNS[:-2], "peak MiB")


class Case(NamedTuple):
    """A model, and the images that it is trained on.

    Attributes:
      model: Name of the model.
      side: Height and width of the images.
      batch_size: Images in a batch.
      dtype: Of the networks.
      fields: Arguments of our model; the original has the same.
    """

    model: str
    side: int = 256
    batch_size: int = 16
    dtype: str = "bfloat16"
    fields: Mapping[str, Any] = {}


CASES = {
    "vqgan": Case("vqgan"),
    "vit_vqgan": Case("vit_vqgan"),
    "vqgan_64": Case("vqgan", 64, 8, "float32", {"channels": 64}),
    "vqgan_128": Case("vqgan", 128, 4, "float32", {"channels": 64}),
    "vit_vqgan_64": Case("vit_vqgan", 64, 16, "float32", {"depth": 4}),
}
"""The first two for a GPU, the others for a CPU."""

_TOY_FIELDS = {
    "vqgan": {"channels": 32, "multipliers": (1, 1), "attention_resolutions": ()},
    "vit_vqgan": {"depth": 1, "mlp_dim": 64},
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="those of this machine by default")
    on_cpu = jax.default_backend() == "cpu"
    rows = []
    for name in parser.parse_args().cases or [name for name, case in CASES.items() if (case.side < 256) == on_cpu]:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rows += measure(name, memory=on_cpu)
        # After each case, as one takes minutes.
        report("tokenizers", rows, CPU_COLUMNS if on_cpu else COLUMNS, by="case")


def measure(name: str, toy: bool = False, memory: bool = False) -> list[dict[str, Any]]:
    """Time all contenders on one model.

    Args:
      name: A key of ``CASES``.
      toy: Small networks and images.
      memory: Measure the greatest memory of each contender as well, in a process of its own.

    Returns:
      A row per contender.
    """
    case = CASES[name]
    if toy:
        case = case._replace(side=64, batch_size=2, fields=_TOY_FIELDS[case.model])
    # As the originals: a second pass for the discriminator.
    orders = {"vqjax, two passes": "generator_first", "vqjax": "together"}
    with ThreadPoolExecutor() as threads:
        jobs = {contender: threads.submit(tokenizer_step, case, order) for contender, order in orders.items()}
    # Before PyTorch uses the device: XLA measures its choices while it compiles.
    ours = {contender: job.result() for contender, job in jobs.items()}
    peers = {"PyTorch": False, "PyTorch, torch.compile": True} if installed("taming") and installed("enhancing") else {}
    theirs = {title: peer_step(case, compiled) for title, compiled in peers.items()}
    timings = by_turns({contender: run for contender, (run, _) in ours.items()} | theirs, seconds=10.0)
    rows = []
    for contender, timing in timings.items():
        row = {
            "case": name,
            "contender": contender,
            "images/s": case.batch_size / timing.median,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "ours is faster by": timing.median / timings["vqjax, two passes"].median,
            "repetitions": timing.repetitions,
        }
        if contender in ours:
            program = ours[contender][1]
            row["TFLOP/s"] = program.cost_analysis()["flops"] / timing.median / 1e12
            row["temporary MiB"] = program.memory_analysis().temp_size_in_bytes / 2**20
        if memory:
            make, argument = (tokenizer_step, orders[contender]) if contender in ours else (peer_step, peers[contender])
            row["peak MiB"] = alone(peak_memory, make, case, argument)
        rows.append(row)
    return rows


def peak_memory(make: Callable[..., Any], case: Case, argument: Any) -> float:
    """Return the most MiB that this process holds during three steps, after compilation.

    Args:
      make: :func:`tokenizer_step` or :func:`peer_step`.
      case: The case.
      argument: The second argument of ``make``.
    """
    made = make(case, argument)
    run = made if callable(made) else made[0]
    run()
    return peak_mib(lambda: [run() for _ in range(3)])


def peer_step(case: Case, compiled: bool) -> Callable[[], None]:
    """One training step of the original.

    Args:
      case: Model and images.
      compiled: With ``torch.compile``.

    Returns:
      A function that returns when the step is done.
    """
    from benchmarks.peers.torch_tokenizers import torch_tokenizer_step

    return torch_tokenizer_step(
        case.model, _images(case), compiled, bfloat16=case.dtype == "bfloat16", side=case.side, **case.fields
    )


def tokenizer_step(case: Case, order: str) -> tuple[Callable[[], None], jax.stages.Compiled]:
    """One training step of ours.

    Args:
      case: Model and images.
      order: Of the two networks, see :class:`vqjax.tasks.vqgan.VQGANTask`.

    Returns:
      A function that returns when the step is done, and the compiled step.
    """
    adaptive = case.model == "vqgan"
    quantizer = VectorQuantizer(
        num_codes=1024 if adaptive else 8192,
        codebook=GradientCodebook(),
        estimator="straight_through",
        distance="euclidean" if adaptive else "cosine",
    )
    code_dim = {"code_dim": 256} if adaptive else {}
    model = build(name=case.model, quantizer=quantizer, dtype=case.dtype, **code_dim, **case.fields)
    task = VQGANTask(
        model,
        optax.adam(4.5e-6, b1=0.5, b2=0.9),
        lambda reconstruction, images: jnp.mean(jnp.abs(reconstruction - images)),
        discriminator=PatchGAN(dtype=case.dtype),
        max_adaptive_weight=1e4 if adaptive else None,
        adversarial_weight=0.8 if adaptive else 0.1,
        order=order,
    )
    return compiled_step(task, {"image": _images(case)})


def _images(case: Case) -> UInt8[np.ndarray, "batch side side 3"]:
    return np.random.default_rng(0).integers(0, 256, (case.batch_size, case.side, case.side, 3), np.uint8)


if __name__ == "__main__":
    main()
