"""Tasks by their names in configs."""

from vqjax.runtime.signature import Registry
from vqjax.tasks.alternating import AlternatingTask
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.vqvae import VQVAETask

TASKS = Registry({"vqvae": VQVAETask, "alternating": AlternatingTask, "decoder_gradient": DecoderGradientTask})
"""The tasks by name: functions of model, optimizer, loss and augmentation, and of the config's group ``task``."""

defaults, build = TASKS.defaults, TASKS.build
