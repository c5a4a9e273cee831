"""Losses by their names in configs."""

from collections.abc import Callable
from typing import Any

from vqjax.losses.reconstruction import MeanSquaredError

LOSSES: dict[str, Callable[..., Any]] = {"mse": MeanSquaredError}
"""The losses by name."""
