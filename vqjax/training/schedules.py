"""Schedules of the quantizer's settings, as functions of the training step."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.quantizers.settings import replace_settings
from vqjax.runtime.signature import Call, Registry, within

# Tokens would mean something else at every step.
_OF_THE_CODES = frozenset({"scale", "soft_clamp", "phi_weight", "learning_rate_scale"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number that goes from one value to another.

    Attributes:
      start: Value until ``begin``.
      end: Value from ``begin + steps`` on.
      steps: Number of steps in between.
      begin: Step at which it starts to move.
      shape: ``"linear"``, half a ``"cosine"``, or ``"exponential"`` between values above 0.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> schedule = Schedule(start=1.0, end=0.0, steps=10, begin=5).build()
      >>> [float(schedule(step)) for step in (0, 10, 20)]
      [1.0, 0.5, 0.0]
    """

    start: float
    end: float
    steps: int
    begin: int = 0
    shape: Literal["linear", "cosine", "exponential"] = "linear"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}.")
        if self.begin < 0:
            raise UserError(f"begin must be at least 0, got {self.begin}.")
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise UserError(f"start and end must be above 0 with shape='exponential', got {self.start} and {self.end}.")

    def build(self) -> optax.Schedule:
        """Return the value as a function of the step."""
        progress = optax.linear_schedule(0.0, 1.0, self.steps, self.begin)
        if self.shape == "exponential":
            return lambda step: self.start * (self.end / self.start) ** progress(step)
        if self.shape == "cosine":
            return lambda step: self.end + (self.start - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
        return optax.linear_schedule(self.start, self.end, self.steps, self.begin)


class ByField(Registry):
    """A group that has a :class:`Schedule` for each field of the quantizer, in groups as its parts are."""

    def complete(self, value: Any) -> dict[str, Any]:
        if not hasattr(value, "items"):
            raise UserError(f"must be a dictionary of schedules by field, got {value!r}.")
        completed = {}
        for field, group in value.items():
            with within(field):
                completed[field] = _SCHEDULE.defaults(**group) if _is_schedule(group) else self.complete(group)
        return completed

    def override(self, config: Any, path: str, text: str) -> dict[str, Any]:
        field, _, rest = path.partition(".")
        groups = dict(config.items())
        inner = groups.pop(field, {})
        with within(field):
            if not rest and text.lower() == "none":
                return groups
            if not rest:
                raise UserError(f"is a group, got {text!r}; set one of its arguments, such as end.")
            return groups | {field: (self if "." in rest else _SCHEDULE).override(inner, rest, text)}


_SCHEDULE = Call(Schedule)

SCHEDULES = ByField({})
"""What the group ``schedules`` of a config holds."""


def build_schedules(config: Mapping[str, Any] | ConfigDict, quantizer: nn.Module) -> dict[str, optax.Schedule]:
    """Build the schedules of a config.

    Args:
      config: The group ``schedules``.
      quantizer: The quantizer whose fields they are.

    Returns:
      The values as functions of the step, by dotted name of the field.

    Raises:
      UserError: There is no such field, a value is out of its range, or tokens depend on it.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> config = {"codebook": {"decay": {"start": 0.9, "end": 0.99, "steps": 100}}}
      >>> schedules = build_schedules(config, VectorQuantizer(num_codes=16))
      >>> print(f"{schedules['codebook.decay'](50):.3f}")
      0.945
    """
    schedules = {}
    for name, group in _flat(config):
        with within(name):
            schedule = _SCHEDULE.build(**group)
        if name.rpartition(".")[-1] in _OF_THE_CODES:
            raise UserError(f"{name} must be the same at every step, as tokens depend on it; leave its schedule out.")
        for value in (schedule.start, schedule.end):
            replace_settings(quantizer, {name: value})
        schedules[name] = schedule.build()
    return schedules


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for field, group in config.items():
        if _is_schedule(group):
            yield prefix + field, dict(group.items())
        else:
            yield from _flat(group, f"{prefix}{field}.")


def _is_schedule(group: Any) -> bool:
    """Whether a group is a schedule, rather than one of schedules; no field of a quantizer has these names."""
    return hasattr(group, "items") and any(field in group for field in _SCHEDULE.fields)
