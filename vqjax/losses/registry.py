"""Registry of losses."""

from vqjax.losses.classification import CrossEntropy
from vqjax.losses.reconstruction import LogitLaplace, MeanAbsoluteError, MeanSquaredError, WeightedSum
from vqjax.runtime.signature import Registry

LOSSES = Registry(
    {
        "mse": MeanSquaredError,
        "l1": MeanAbsoluteError,
        "logit_laplace": LogitLaplace,
        "sum": WeightedSum,
        "cross_entropy": CrossEntropy,
    }
)
"""The losses by name; each takes the training images and the arguments in the config group ``loss``."""

defaults, build = LOSSES.defaults, LOSSES.build
