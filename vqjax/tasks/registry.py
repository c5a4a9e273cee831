"""Registry of tasks."""

import functools
from collections.abc import Callable

from absl import logging

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.evaluation.features import FeatureNetwork
from vqjax.importing.lpips import load_lpips
from vqjax.losses.perceptual import PerceptualLoss
from vqjax.models.classifiers import Classifier, FeaturesAtPlaces
from vqjax.models.discriminators import PatchGAN, PatchGAN3D, StyleGANDiscriminator
from vqjax.models.feature_discriminator import FeatureDiscriminator, FrozenNetwork
from vqjax.models.lpips import unlearned_lpips
from vqjax.models.tokenizer import Tokenizer
from vqjax.runtime.signature import Registry
from vqjax.tasks.alternating import AlternatingTask
from vqjax.tasks.autoregressive import AutoregressiveTask
from vqjax.tasks.classification import ClassificationTask
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.masked_tokens import MaskedTokensTask
from vqjax.tasks.next_scale import NextScaleTask
from vqjax.tasks.vqgan import VQGANTask
from vqjax.tasks.vqvae import VQVAETask


def _lpips(file: str | None = None, *, weight: float = 1.0) -> PerceptualLoss | None:
    """LPIPS from a ``.safetensors`` file, see :func:`vqjax.importing.lpips.load_lpips`; None without one."""
    if file is None:
        logging.warning(
            "LPIPS is missing: without config.task.perceptual.file, the reconstruction loss is config.loss alone. "
            "The file is the state dict of lpips.LPIPS(net='vgg') of the package lpips 0.1.4 as safetensors (docs/"
            "options.md); the SHA-256 of its heads, lpips/weights/v0.1/vgg.pth, begins with a78928a0af1e5f0f."
        )
        return None
    return PerceptualLoss(*load_lpips(file), weight)


def _unlearned(file: str, *, weight: float = 1.0) -> PerceptualLoss:
    """The distance of LPIPS with weights of one, over any network that :func:`_frozen` finds."""
    network, side = _frozen(file)
    return PerceptualLoss(*unlearned_lpips(network, side), weight)


def _features(file: str, *, group_size: int = 8) -> FeatureDiscriminator:
    """Heads over any network that :func:`_frozen` finds."""
    return FeatureDiscriminator(_frozen(file)[0], group_size)


def _frozen(file: str) -> tuple[FrozenNetwork, int]:
    """A network of ``vqjax eval --features``, a file or the run of a classifier, and the size of images it takes."""
    found = FeatureNetwork.from_file(file)
    module, variables = found.module, found.variables
    if isinstance(module, Classifier):
        module = FeaturesAtPlaces(module)
        variables = {collection: {"classifier": tree} for collection, tree in variables.items()}
    return FrozenNetwork(module, variables), found.size or 64


def _start(workdir: str, *, step: int | None = None) -> Callable[[], Tokenizer]:
    """What loads the tokenizer of a run; a new run alone does so, so that the other may go later."""
    return functools.partial(load_tokenizer, workdir, step)


def _tokenizer(workdir: str, *, step: int | None = None) -> Tokenizer:
    """The tokenizer of a run."""
    return load_tokenizer(workdir, step)


_PARTS = {
    "discriminator": Registry(
        {"patchgan": PatchGAN, "patchgan3d": PatchGAN3D, "stylegan": StyleGANDiscriminator, "features": _features}
    ),
    "perceptual": Registry({"lpips": _lpips, "features": _unlearned}),
    "tokenizer": Registry({"run": _tokenizer}),
    "inflate": Registry({"run": _start}),
}

TASKS = Registry(
    {
        "vqvae": VQVAETask,
        "alternating": AlternatingTask,
        "decoder_gradient": DecoderGradientTask,
        "vqgan": VQGANTask,
        "classification": ClassificationTask,
        "autoregressive": AutoregressiveTask,
        "masked_tokens": MaskedTokensTask,
        "next_scale": NextScaleTask,
    },
    _PARTS,
)
"""Tasks by name: functions of model, optimizer, loss, augmentation and the arguments in the config group ``task``."""

defaults, build = TASKS.defaults, TASKS.build
