"""Losses by their names in configs."""

from vqjax.losses.reconstruction import MeanSquaredError
from vqjax.runtime.signature import Registry

LOSSES = Registry({"mse": MeanSquaredError})
"""The losses by name: functions of the training images and of the config's group ``loss``."""

defaults, build = LOSSES.defaults, LOSSES.build
