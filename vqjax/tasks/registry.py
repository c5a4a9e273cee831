"""Registry of tasks."""

from vqjax.losses.perceptual import PerceptualLoss, load_lpips
from vqjax.models.discriminators import PatchGAN, StyleGANDiscriminator
from vqjax.runtime.signature import Registry
from vqjax.tasks.alternating import AlternatingTask
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.vqgan import VQGANTask
from vqjax.tasks.vqvae import VQVAETask


def _lpips(file: str, *, weight: float = 1.0) -> PerceptualLoss:
    """LPIPS from a ``.safetensors`` file, see :func:`vqjax.losses.perceptual.load_lpips`."""
    return PerceptualLoss(*load_lpips(file), weight)


_PARTS = {
    "discriminator": Registry({"patchgan": PatchGAN, "stylegan": StyleGANDiscriminator}),
    "perceptual": Registry({"lpips": _lpips}),
}

TASKS = Registry(
    {
        "vqvae": VQVAETask,
        "alternating": AlternatingTask,
        "decoder_gradient": DecoderGradientTask,
        "vqgan": VQGANTask,
    },
    _PARTS,
)
"""Tasks by name: functions of model, optimizer, loss, augmentation and the arguments in the config group ``task``."""

defaults, build = TASKS.defaults, TASKS.build
