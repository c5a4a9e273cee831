"""The same autoencoders in PyTorch around vector-quantize-pytorch: a whole training step."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from benchmarks.peers.torch_device import torch_device


class StudyBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class SonnetStack(nn.Module):
    """Residual blocks of a 3x3 and a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Conv2d(channels, channels // 4, 3, padding=1) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv2d(channels // 4, channels, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = x + narrow(F.relu(wide(F.relu(x))))
        return F.relu(x)


def study_model() -> tuple[nn.Module, int, int, nn.Module]:
    """Encoder, features, codes and decoder of the CIFAR-10 study."""
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 128, 4, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 4, 2, 1), nn.ReLU()),
        *(StudyBlock(256), StudyBlock(256)),
    )
    decoder = nn.Sequential(
        *(StudyBlock(256), StudyBlock(256), nn.ConvTranspose2d(256, 128, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(128, 3, 4, 2, 1), nn.Tanh()),
    )
    return encoder, 256, 1024, decoder


def sonnet_model() -> tuple[nn.Module, int, int, nn.Module]:
    """Encoder, features, codes and decoder of sonnet's notebook."""
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(128, 128, 3, padding=1), SonnetStack(128), nn.Conv2d(128, 64, 1)),
    )
    decoder = nn.Sequential(
        *(nn.Conv2d(64, 128, 3, padding=1), SonnetStack(128), nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU()),
        nn.ConvTranspose2d(64, 3, 4, 2, 1),
    )
    return encoder, 64, 512, decoder


MODELS = {"residual": study_model, "sonnet": sonnet_model}


def torch_train_step(
    name: str, images: np.ndarray, learning_rate: float, compiled: bool, bfloat16: bool
) -> Callable[[], None]:
    """One step of Adam on images that are on the device already, in the layout that is fastest.

    Args:
      name: A key of ``MODELS``.
      images: uint8 ``[batch, height, width, 3]``.
      learning_rate: Of Adam.
      compiled: With ``torch.compile``.
      bfloat16: Convolutions in bfloat16 under autocast, the quantizer in float32.

    Returns:
      A function that returns when the step is done.
    """
    device = torch_device()
    encoder, dim, codes, decoder = MODELS[name]()
    encoder, decoder = (part.to(device, memory_format=torch.channels_last) for part in (encoder, decoder))
    quantizer = VectorQuantize(dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25, rotation_trick=True)
    quantizer = quantizer.to(device).train()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=device == "cuda")
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            z = encoder(pixels)
        with torch.autocast(device, enabled=False):
            tokens = z.float().permute(0, 2, 3, 1)
            quantized, _, loss = quantizer(tokens.reshape(len(batch), -1, dim))
            quantized = quantized.reshape(tokens.shape).permute(0, 3, 1, 2)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            reconstruction = decoder(quantized)
        return F.mse_loss(reconstruction.float(), pixels) + loss.sum()

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_function(batch).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
