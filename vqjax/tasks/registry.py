"""Registry of tasks."""

from vqjax.runtime.signature import Registry
from vqjax.tasks.alternating import AlternatingTask
from vqjax.tasks.decoder_gradient import DecoderGradientTask
from vqjax.tasks.vqvae import VQVAETask

TASKS = Registry({"vqvae": VQVAETask, "alternating": AlternatingTask, "decoder_gradient": DecoderGradientTask})
"""The tasks by name; each takes a model, an optimizer, a loss, an augmentation and the config group ``task``."""

defaults, build = TASKS.defaults, TASKS.build
