"""ResNet-18 for small images in PyTorch, with a quantizer in its middle or without: a whole training step."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torch_device import torch_device


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added; a 1x1 convolution fits it where the size changes."""

    def __init__(self, before: int, channels: int, strides: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(before, channels, 3, strides, 1, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.shortcut_conv, self.shortcut_norm = nn.Identity(), nn.Identity()
        if strides == 2:
            self.shortcut_conv = nn.Conv2d(before, channels, 1, strides, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(x)))))
        return F.relu(y + self.shortcut_norm(self.shortcut_conv(x)))


class ResNet18(nn.Module):
    """The network, with a quantizer behind its second stage, if one is given.

    Args:
      width: Channels of the first stage.
      classes: Number of classes.
      quantizer: A module that maps features with channels second to ``(quantized, loss)``.
    """

    def __init__(self, width: int = 64, classes: int = 10, quantizer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem_conv, self.stem_norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width * 2 ** max(0, stage - 1), width * 2**stage, 2 if stage else 1) for stage in range(4)]
        self.stages = nn.ModuleList(
            nn.Sequential(Block(before, channels, strides), Block(channels, channels, 1))
            for before, channels, strides in sizes
        )
        self.quantizer, self.logits = quantizer, nn.Linear(8 * width, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, loss = F.relu(self.stem_norm(self.stem_conv(x))), x.new_zeros(())
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == 1 and self.quantizer is not None:
                x, loss = self.quantizer(x)
        return self.logits(x.mean((2, 3))), loss


class _Quantizer(nn.Module):
    """That of vector-quantize-pytorch, in float32."""

    def __init__(self, dim: int, codes: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.quantize = VectorQuantize(dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.float().permute(0, 2, 3, 1)
            quantized, _, loss = self.quantize(tokens.reshape(len(x), -1, tokens.shape[-1]))
            return quantized.reshape(tokens.shape).permute(0, 3, 1, 2), loss.sum()


def torch_classifier_step(
    images: np.ndarray, labels: np.ndarray, width: int, codes: int, compiled: bool, bfloat16: bool
) -> Callable[[], None]:
    """One step of SGD with Nesterov's momentum on images that are on the device already, in the layout that is fastest.

    Args:
      images: uint8 ``[batch, height, width, 3]``.
      labels: Class of each.
      width: Channels of the first stage.
      codes: Of the quantizer behind the second stage.
      compiled: With ``torch.compile``.
      bfloat16: Networks in bfloat16 under autocast, the quantizer in float32.

    Returns:
      A function that returns when the step is done.
    """
    device = torch_device()
    model = (
        ResNet18(width, quantizer=_Quantizer(2 * width, codes)).to(device, memory_format=torch.channels_last).train()
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    classes = torch.tensor(labels, device=device).long()

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits, loss = model(batch.float() / 127.5 - 1)
        return F.cross_entropy(logits.float(), classes, label_smoothing=0.1) + loss

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_function(batch).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
