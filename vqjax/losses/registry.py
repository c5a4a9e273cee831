"""Registry of losses."""

from vqjax.losses.reconstruction import MeanSquaredError
from vqjax.runtime.signature import Registry

LOSSES = Registry({"mse": MeanSquaredError})
"""The losses by name; each takes the training images and the arguments in the config group ``loss``."""

defaults, build = LOSSES.defaults, LOSSES.build
