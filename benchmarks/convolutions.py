"""Each convolution of a training step beside PyTorch's: python -m benchmarks.convolutions [residual|sonnet|vqgan ...]

The layers of the CIFAR-10 study's model and of sonnet's, and most of VQGAN f16 with 64 channels at 64 pixels; forward,
and the gradients of input and kernel, each alone. PyTorch calls oneDNN. Whole steps are in benchmarks/train_step.py.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import torch
from torch.nn import functional as F

from benchmarks.measure import by_turns, report
from vqjax.models.layers import DownsamplingConv, UpsamplingConv, pointwise_conv
from vqjax.runtime.compilation import compiler_options

COLUMNS = ("model", "layer", "times", "pass", "vqjax (ms)", "PyTorch (ms)", "ours is faster by", "GFLOP/s")
PASSES = ("forward", "gradient of input", "gradient of kernel")


class Layer(NamedTuple):
    """A convolution.

    Attributes:
      kind: ``"3x3"``, ``"1x1"``, ``"down"`` or ``"up"``: 4x4 with stride 2, the latter transposed.
      channels: Of its input.
      features: Channels of its output.
      side: Height and width of its input.
      times: How often the model has it.
    """

    kind: str
    channels: int
    features: int
    side: int
    times: int = 1

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.kind}, {self.channels} to {self.features} at {self.side} x {self.side}"

    @property
    def flops(self) -> int:
        """Operations of one image, in each pass."""
        taps, pixels = {"3x3": (9, 1), "1x1": (1, 1), "down": (16, 0.25), "up": (16, 1)}[self.kind]
        return int(2 * taps * pixels * self.side**2 * self.channels * self.features)


MODELS = {
    "residual": (
        128,
        (
            Layer("down", 3, 128, 32),
            Layer("down", 128, 256, 16),
            Layer("3x3", 256, 256, 8, times=8),
            Layer("up", 256, 128, 8),
            Layer("up", 128, 3, 16),
        ),
    ),
    "sonnet": (
        32,
        (
            Layer("down", 3, 64, 32),
            Layer("down", 64, 128, 16),
            Layer("3x3", 128, 128, 8),
            Layer("3x3", 64, 128, 8),
            Layer("3x3", 128, 32, 8, times=4),
            Layer("1x1", 32, 128, 8, times=4),
            Layer("1x1", 128, 64, 8),
            Layer("up", 128, 64, 8),
            Layer("up", 64, 3, 16),
        ),
    ),
    "vqgan": (
        8,
        (
            Layer("3x3", 3, 64, 64),
            Layer("3x3", 64, 64, 64, times=11),
            Layer("3x3", 64, 64, 32, times=9),
            Layer("3x3", 128, 128, 16, times=10),
            Layer("3x3", 128, 128, 8, times=9),
            Layer("3x3", 256, 256, 4, times=19),
            Layer("1x1", 256, 256, 4, times=28),
            Layer("3x3", 64, 3, 64),
        ),
    ),
}
"""Batch size and layers by the name of a model."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="all by default")
    rows = []
    for name in parser.parse_args().models or MODELS:
        batch_size, layers = MODELS[name]
        for layer in layers:
            print(f"measuring {name}, {layer.name}", file=sys.stderr, flush=True)
            rows += [{"model": name} | row for row in measure(layer, batch_size)]
        rows.append({"model": name} | total([row for row in rows if row["model"] == name]))
    report("convolutions", rows, COLUMNS)


def measure(layer: Layer, batch_size: int) -> list[dict[str, Any]]:
    """Time the passes of a layer in both libraries.

    Args:
      layer: The layer.
      batch_size: Number of images.

    Returns:
      A row per pass.
    """
    ours, theirs = vqjax_passes(layer, batch_size), torch_passes(layer, batch_size)
    rows = []
    for name in PASSES:
        # One after the other: for some time after a call, threads of the library before spin, which takes these few
        # milliseconds up to twice as long.
        timings = {}
        for contender, passes in (("vqjax", ours), ("PyTorch", theirs)):
            time.sleep(0.5)
            timings |= by_turns({contender: passes[name]}, seconds=1.0)
        rows.append(
            {
                "layer": layer.name,
                "times": layer.times,
                "pass": name,
                "vqjax (ms)": 1e3 * timings["vqjax"].median,
                "PyTorch (ms)": 1e3 * timings["PyTorch"].median,
                "ours is faster by": timings["PyTorch"].median / timings["vqjax"].median,
                "GFLOP/s": batch_size * layer.flops / timings["vqjax"].median / 1e9,
            }
        )
    return rows


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the time of all layers of a model, each as often as the model has it."""
    ours, theirs = (sum(row["times"] * row[f"{name} (ms)"] for row in rows) for name in ("vqjax", "PyTorch"))
    row = {"layer": "all", "times": None, "pass": "all", "vqjax (ms)": ours, "PyTorch (ms)": theirs}
    return row | {"ours is faster by": theirs / ours, "GFLOP/s": None}


def vqjax_passes(layer: Layer, batch_size: int) -> dict[str, Callable[[], object]]:
    """Our layer's passes by name, compiled with the options of the trainer."""
    module: nn.Module
    if layer.kind == "3x3":
        module = nn.Conv(layer.features, (3, 3))
    elif layer.kind == "1x1":
        module = pointwise_conv(layer.features)
    else:
        module = (DownsamplingConv if layer.kind == "down" else UpsamplingConv)(layer.features)
    x = jax.random.normal(jax.random.key(0), (batch_size, layer.side, layer.side, layer.channels))
    y, variables = module.init_with_output(jax.random.key(1), x)

    def forward(variables: Any, x: jax.Array, _: jax.Array) -> jax.Array:
        return module.apply(variables, x)

    def of_input(variables: Any, x: jax.Array, slope: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: module.apply(variables, x), x)[1](slope)[0]

    def of_kernel(variables: Any, x: jax.Array, slope: jax.Array) -> jax.Array:
        return jax.vjp(lambda variables: module.apply(variables, x), variables)[1](slope)[0]

    def compiled(function: Callable[..., Any]) -> Callable[[], object]:
        options = compiler_options(jax.default_backend())
        program = jax.jit(function).lower(variables, x, y).compile(compiler_options=options)
        return lambda: jax.block_until_ready(program(variables, x, y))

    return dict(zip(PASSES, map(compiled, (forward, of_input, of_kernel)), strict=True))


def torch_passes(layer: Layer, batch_size: int) -> dict[str, Callable[[], object]]:
    """PyTorch's passes by name, in the layout that is fastest, channels last."""
    shape, stride = (batch_size, layer.channels, layer.side, layer.side), 1 if "x" in layer.kind else 2
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    size, padding = {"3x3": (3, 1), "1x1": (1, 0)}.get(layer.kind, (4, 1))
    channels = (layer.channels, layer.features) if layer.kind == "up" else (layer.features, layer.channels)
    weight = torch.randn(*channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.zeros(layer.features, requires_grad=True)
    convolve = F.conv_transpose2d if layer.kind == "up" else F.conv2d

    def forward() -> torch.Tensor:
        return convolve(x, weight, bias, stride, padding)

    def without_a_graph() -> None:
        with torch.no_grad():
            forward()

    y = forward()
    slope = torch.randn_like(y)

    def gradient(*of: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, of, slope, retain_graph=True)

    return dict(zip(PASSES, (without_a_graph, gradient(x), gradient(weight, bias)), strict=True))


if __name__ == "__main__":
    main()
