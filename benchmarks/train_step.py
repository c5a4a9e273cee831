"""A whole training step beside a PyTorch loop: python -m benchmarks.train_step [residual|sonnet|resnet18|causal ...]

The CIFAR-10 study's model (batch 128), sonnet's (batch 32), ResNet-18 with a quantizer in its middle (batch 32) and the
small one for CPUs (batch 128); causal and masked transformers over 8 x 8 tokens of 512 codes as in
configs/generate.py:tiny, and of 384 features and 6 blocks (batch 64). Data on the device, one step at a time.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.measure import by_turns, compiled_step, report
from benchmarks.peers.available import installed
from benchmarks.trainer import ROOT, fields
from vqjax.data import Batch, ImageDataset
from vqjax.data.arrays import ArrayDataset
from vqjax.data.tokens import TokenDataset
from vqjax.functional.tokens import TokenInfo
from vqjax.tasks.second_stage import TRANSFORMER
from vqjax.tasks.task import Task
from vqjax.training.build import build_task
from vqjax.training.config import base_config, load_config, validate

BATCH_SIZES = {"residual": 128, "sonnet": 32, "resnet18": 32, "resnet18_small": 128}
TOKENS = {
    "causal": ("tiny", {}),
    "masked": ("tiny,masked", {}),
    "causal_384": ("tiny", {"model.dim": 384, "model.depth": 6, "model.heads": 6}),
    "masked_384": ("tiny,masked", {"model.dim": 384, "model.depth": 6, "model.heads": 6}),
}
"""Arguments of configs/generate.py and changes, by the name of a transformer."""
BATCH_SIZES |= dict.fromkeys(TOKENS, 64)
_GRID, _CODES, _CLASSES = (8, 8), 512, 10
COLUMNS = ("model", "contender", "images/s", "ms", "spread (ms)", "ours is faster by", "GFLOP/s", "of a large product")
_SIDE_OF_LARGE_PRODUCT = 2048


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*BATCH_SIZES, []], help="all by default")
    rows = []
    for name in parser.parse_args().models or BATCH_SIZES:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rows += measure(name)
    report("train_step", rows, COLUMNS, by="model")


def measure(name: str, batch_size: int | None = None) -> list[dict[str, Any]]:
    """Time all contenders on one model.

    Args:
      name: A key of ``BATCH_SIZES``.
      batch_size: That of ``BATCH_SIZES`` by default.

    Returns:
      A row per contender.
    """
    batch_size = batch_size or BATCH_SIZES[name]
    batch = _batch(name, batch_size)
    work, flops, task = vqjax_train_step(name, batch)
    contenders: dict[str, Callable[[], object]] = {"vqjax": work, "large product": large_product()}
    on_gpu = jax.default_backend() != "cpu"
    if on_gpu:
        contenders["vqjax, bfloat16"] = vqjax_train_step(name, batch, dtype="bfloat16")[0]
        contenders["vqjax, deterministic"] = vqjax_train_step(name, batch, deterministic=True)[0]
    if name == "residual":
        from benchmarks.peers.plain_autoencoder import plain_train_step

        contenders["plain Flax"] = plain_train_step(batch["image"], 2e-4)
    if installed("vector_quantize_pytorch"):
        for compiled in (False, True):
            title = "PyTorch, torch.compile" if compiled else "PyTorch"
            contenders[title] = _peer(name, batch, task, compiled, bfloat16=False)
            if on_gpu:
                contenders[f"{title}, bfloat16"] = _peer(name, batch, task, compiled, bfloat16=True)
    timings = by_turns(contenders, seconds=10.0 if on_gpu else 60.0)
    peak = 2 * _SIDE_OF_LARGE_PRODUCT**3 / timings.pop("large product").median
    return [
        {
            "model": name,
            "contender": contender,
            "images/s": batch_size / timing.median,
            "ms": 1e3 * timing.median,
            "spread (ms)": f"{1e3 * timing.quarter:.3g} to {1e3 * timing.three_quarters:.3g}",
            "ours is faster by": timing.median / timings[f"vqjax{', bfloat16' * ('bfloat16' in contender)}"].median,
            # The others do the same arithmetic, but may count it otherwise.
            "GFLOP/s": flops / timing.median / 1e9 if contender == "vqjax" else None,
            "of a large product": flops / timing.median / peak if contender == "vqjax" else None,
            "repetitions": timing.repetitions,
        }
        for contender, timing in timings.items()
    ]


def _batch(name: str, batch_size: int) -> Batch:
    random = np.random.default_rng(0)
    labels = np.arange(batch_size, dtype=np.int32) % _CLASSES
    if name in TOKENS:
        return {"tokens": random.integers(0, _CODES, (batch_size, *_GRID), np.int32), "label": labels}
    images = random.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    return {"image": images, "label": labels} if name.startswith("resnet18") else {"image": images}


def vqjax_train_step(
    name: str, batch: Batch, dtype: str = "float32", deterministic: bool = False
) -> tuple[Callable[[], None], float, Task]:
    """One training step of ours.

    Args:
      name: Of the model.
      batch: Images or tokens, and labels.
      dtype: Of the layers.
      deterministic: With operations of the GPU that give the same bits each time.

    Returns:
      A function that returns when the step is done, the floating-point operations that XLA counts in it, and the task.
    """
    data: ImageDataset
    if name in TOKENS:
        arguments, changes = TOKENS[name]
        given = {"model.dtype": dtype, "task.tokenizer": None}
        config = load_config(str(ROOT / f"configs/generate.py:{arguments}"), fields(changes | given))
        info = TokenInfo((_CODES,), _GRID, _CLASSES)
        data = TokenDataset("random", [(batch["tokens"], batch["label"])], info, list(map(str, range(_CLASSES))))
    else:
        if name.startswith("resnet18"):
            small = ",small" if name == "resnet18_small" else ""
            config = load_config(
                str(ROOT / f"configs/classify_cifar10.py:vq,remedies=ema{small}"),
                fields({"model.dtype": dtype, "data.flip": False, "data.crop_padding": None}),
            )
        else:
            config = base_config()
            config.num_steps = 1
            config.model = {"name": name, "dtype": dtype}
            config.quantizer.num_codes = 512 if name == "sonnet" else 1024
        data = ArrayDataset("random", batch["image"], batch["image"].shape[1], batch.get("label"))
    options = {"xla_gpu_deterministic_ops": True} if deterministic else {}
    task = build_task(validate(config), data)
    run, compiled = compiled_step(task, batch, **options)
    return run, compiled.cost_analysis()["flops"], task


def _peer(name: str, batch: Batch, task: Task, compiled: bool, bfloat16: bool) -> Callable[[], None]:
    """A training step of PyTorch; that of a transformer starts from our parameters."""
    if name in TOKENS:
        from benchmarks.peers.torch_tokens import torch_tokens_step

        params = jax.device_get(task.init(jax.random.key(0), batch).params[TRANSFORMER])
        tokens = batch["tokens"].reshape(len(batch["tokens"]), -1)
        return torch_tokens_step(task.model, params, tokens, batch["label"], compiled, bfloat16)
    if name.startswith("resnet18"):
        from benchmarks.peers.torch_classifier import torch_classifier_step

        width = 16 if name == "resnet18_small" else 64
        return torch_classifier_step(batch["image"], batch["label"], width, 512, compiled, bfloat16)
    from benchmarks.peers.torch_autoencoder import torch_train_step

    return torch_train_step(name, batch["image"], 2e-4, compiled, bfloat16)


def large_product() -> Callable[[], object]:
    """A product of two matrices large enough to show what the device can do in float32."""
    matrix = jax.numpy.ones((_SIDE_OF_LARGE_PRODUCT, _SIDE_OF_LARGE_PRODUCT))
    product = jax.jit(lambda x, y: jax.numpy.matmul(x, y))
    return lambda: jax.block_until_ready(product(matrix, matrix))


if __name__ == "__main__":
    main()
