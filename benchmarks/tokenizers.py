"""Training steps of the image tokenizers against their discriminators: python -m benchmarks.tokenizers [MODEL ...]

VQGAN f16 and the small ViT-VQGAN at 256 pixels in bfloat16 with a PatchGAN, images on the device. Beside them the
original PyTorch modules, where clones of taming-transformers and enhancing-transformers are on ``PYTHONPATH``.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import by_turns, compiled_step, report
from benchmarks.peers.available import installed
from vqjax import GradientCodebook, VectorQuantizer
from vqjax.models.discriminators import PatchGAN
from vqjax.models.registry import build
from vqjax.tasks.vqgan import VQGANTask

BATCH_SIZE = 16
COLUMNS = ("model", "contender", "images/s", "ms", "spread (ms)", "ours is faster by", "TFLOP/s", "temporary MiB")
_SIZES = {"vqgan": {"code_dim": 256}, "vit_vqgan": {}}
_TOY = {
    "vqgan": {"channels": 32, "multipliers": (1, 1), "attention_resolutions": ()},
    "vit_vqgan": {"depth": 1, "mlp_dim": 64},
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*_SIZES, []], help="both by default")
    rows = []
    for name in parser.parse_args().models or _SIZES:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rows += measure(name)
    report("tokenizers", rows, COLUMNS)


def measure(name: str, toy: bool = False) -> list[dict[str, Any]]:
    """Time all contenders on one model.

    Args:
      name: ``"vqgan"`` or ``"vit_vqgan"``.
      toy: Small networks and images.

    Returns:
      A row per contender.
    """
    side, batch_size = (64, 2) if toy else (256, BATCH_SIZE)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    # As the originals: a second pass for the discriminator.
    orders = {"vqjax, two passes": "generator_first", "vqjax": "together"}
    with ThreadPoolExecutor() as threads:
        jobs = {
            contender: threads.submit(tokenizer_step, name, images, order, toy) for contender, order in orders.items()
        }
    # Before PyTorch uses the device: XLA measures its choices while it compiles.
    ours = {contender: job.result() for contender, job in jobs.items()}
    peers: dict[str, Callable[[], object]] = {}
    if installed("taming") and installed("enhancing"):
        from benchmarks.peers.torch_tokenizers import torch_tokenizer_step

        for compiled in (False, True):
            title = "PyTorch, torch.compile" if compiled else "PyTorch"
            peers[title] = torch_tokenizer_step(name, images, compiled, toy=toy)
    timings = by_turns({contender: run for contender, (run, _) in ours.items()} | peers, seconds=10.0)
    rows = []
    for contender, timing in timings.items():
        row = {
            "model": name,
            "contender": contender,
            "images/s": batch_size / timing.median,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "ours is faster by": timing.median / timings["vqjax, two passes"].median,
            "repetitions": timing.repetitions,
        }
        if contender in ours:
            program = ours[contender][1]
            row["TFLOP/s"] = program.cost_analysis()["flops"] / timing.median / 1e12
            row["temporary MiB"] = program.memory_analysis().temp_size_in_bytes / 2**20
        rows.append(row)
    return rows


def tokenizer_step(
    name: str, images: np.ndarray, order: str, toy: bool = False
) -> tuple[Callable[[], None], jax.stages.Compiled]:
    """One training step of ours.

    Args:
      name: Of the model.
      images: uint8 ``[batch, height, width, 3]``.
      order: Of the two networks, see :class:`vqjax.tasks.vqgan.VQGANTask`.
      toy: A small network.

    Returns:
      A function that returns when the step is done, and the compiled step.
    """
    adaptive = name == "vqgan"
    quantizer = VectorQuantizer(
        num_codes=1024 if adaptive else 8192,
        codebook=GradientCodebook(),
        estimator="straight_through",
        distance="euclidean" if adaptive else "cosine",
    )
    model = build(name=name, quantizer=quantizer, dtype="bfloat16", **_SIZES[name], **(_TOY[name] if toy else {}))
    task = VQGANTask(
        model,
        optax.adam(4.5e-6, b1=0.5, b2=0.9),
        lambda reconstruction, images: jnp.mean(jnp.abs(reconstruction - images)),
        discriminator=PatchGAN(dtype="bfloat16"),
        max_adaptive_weight=1e4 if adaptive else None,
        adversarial_weight=0.8 if adaptive else 0.1,
        order=order,
    )
    return compiled_step(task, {"image": images})


if __name__ == "__main__":
    main()
