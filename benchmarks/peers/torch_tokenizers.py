"""Training steps of the original image tokenizers, from clones of their repositories on ``PYTHONPATH``.

taming-transformers (``import taming``) and enhancing-transformers (``import enhancing``); the loop around their modules
is theirs: the generator's step, then that of the discriminator on a second pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from enhancing.modules.stage1.layers import ViTDecoder, ViTEncoder
from enhancing.modules.stage1.quantizers import VectorQuantizer
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import nn
from torch._functorch import config as functorch

from benchmarks.peers.torch_device import torch_device

np.float = float  # enhancing-transformers asks NumPy for this name, which is gone


class _Tokenizer(nn.Module):
    """From images to the input of the last layer, ``last``."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.before(self.encoder(images))
        with torch.autocast(images.device.type, enabled=False):
            quantized, loss, _ = self.quantizer(z.float())
        return self.decoder(self.behind(quantized)), loss


class VQGAN(_Tokenizer):
    """taming-transformers' model for ImageNet."""

    def __init__(
        self,
        side: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        attention_resolutions: Sequence[int] = (16,),
    ) -> None:
        super().__init__()
        del side  # any will do
        size = {"ch": channels, "ch_mult": multipliers, "attn_resolutions": attention_resolutions, "num_res_blocks": 2}
        size |= {"in_channels": 3, "out_ch": 3, "resolution": 256, "z_channels": 256, "double_z": False}
        self.encoder, self.decoder = Encoder(**size), Decoder(**size)
        self.before, self.behind = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)
        self.quantizer = VectorQuantizer2(1024, 256, beta=0.25)
        # Apart from the rest, so that the adaptive weight does not go through a whole compiled decoder.
        self.last, self.decoder.conv_out = self.decoder.conv_out, nn.Identity()


class ViTVQGAN(_Tokenizer):
    """enhancing-transformers' small model."""

    def __init__(self, side: int, depth: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        size = {"image_size": side, "patch_size": 8, "heads": 8, "dim": 512, "depth": depth, "mlp_dim": mlp_dim}
        self.encoder, self.decoder = ViTEncoder(**size), ViTDecoder(**size)
        self.before, self.behind = nn.Linear(512, 32), nn.Linear(32, 512)
        self.quantizer = VectorQuantizer(32, 8192)
        self.last, self.decoder.to_pixel[-1] = self.decoder.to_pixel[-1], nn.Identity()


MODELS = {"vqgan": VQGAN, "vit_vqgan": ViTVQGAN}


def torch_tokenizer_step(
    name: str, images: np.ndarray, compiled: bool, bfloat16: bool, **fields: Any
) -> Callable[[], None]:
    """One step of Adam for both networks on images that are on the device already.

    Args:
      name: A key of ``MODELS``; ``"vqgan"`` with the adaptive weight of the adversarial loss, as the originals.
      images: uint8 ``[batch, height, width, 3]``.
      compiled: The networks with ``torch.compile``.
      bfloat16: Networks in bfloat16 under autocast, the quantizer in float32.
      **fields: Arguments of the model.

    Returns:
      A function that returns when the step is done.
    """
    device = torch_device()
    # The adaptive weight reads the graph twice.
    functorch.donated_buffer = False
    model = MODELS[name](**fields).to(device, memory_format=torch.channels_last).train()
    judge = NLayerDiscriminator(ndf=64, n_layers=3).to(device, memory_format=torch.channels_last).train()
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=4.5e-6, betas=(0.5, 0.9), fused=device == "cuda")
        for network in (model, judge)
    ]
    generate, discriminate = model, judge
    if compiled:
        generate, discriminate = (torch.compile(network, dynamic=False) for network in (model, judge))
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def norm_of_last(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, model.last.weight, retain_graph=True)[0].norm()

    def generator_step(pixels: torch.Tensor) -> None:
        judge.requires_grad_(False)  # as PyTorch Lightning does around the step of each optimizer
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            features, of_quantizer = generate(pixels)
            images = model.last(features)
            of_images = (images.float() - pixels).abs().mean()
            deceived = -discriminate(images).float().mean()
        weight = 0.1
        if name == "vqgan":
            weight = 0.8 * (norm_of_last(of_images) / (norm_of_last(deceived) + 1e-4)).clamp(0, 1e4).detach()
        optimizers[0].zero_grad(set_to_none=True)
        (of_images + weight * deceived + of_quantizer).backward()
        optimizers[0].step()
        judge.requires_grad_(True)

    def discriminator_step(pixels: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                images = model.last(generate(pixels)[0])
            of_real, of_fake = discriminate(pixels).float(), discriminate(images.float()).float()
        optimizers[1].zero_grad(set_to_none=True)
        (0.5 * ((1 - of_real).relu().mean() + (1 + of_fake).relu().mean())).backward()
        optimizers[1].step()

    def step() -> None:
        pixels = batch.float() / 127.5 - 1
        generator_step(pixels)
        discriminator_step(pixels)
        if device == "cuda":
            torch.cuda.synchronize()

    return step
