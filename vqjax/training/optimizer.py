"""Optimizers by name and arguments, with schedule, warm-up, clipping and weight decay from optax."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax
from jaxtyping import PyTree

from vqjax.errors import UserError

_UNDECAYED = frozenset({"bias", "scale"})


def adam(
    learning_rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Build Adam; see :func:`optax.adam`."""
    return optax.adam(learning_rate, b1, b2, eps)


def adamw(
    learning_rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """Build Adam with decoupled weight decay of what :func:`is_decayed` selects; see :func:`optax.adamw`."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=is_decayed)


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float | None = None,
) -> optax.GradientTransformation:
    """Build stochastic gradient descent; see :func:`optax.sgd`. Weight decay is added to the gradient."""
    decay = [] if weight_decay is None else [optax.add_decayed_weights(weight_decay, is_decayed)]
    return optax.chain(*decay, optax.sgd(learning_rate, momentum, nesterov))


def lion(
    learning_rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 1e-3
) -> optax.GradientTransformation:
    """Build Lion, with weight decay of what :func:`is_decayed` selects; see :func:`optax.lion`."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=is_decayed)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "lion": lion,
}
"""The optimizers by name: functions of a schedule of learning rates and their own arguments."""


def is_decayed(params: PyTree) -> PyTree:
    """Return, for each parameter, whether weight decay applies to it: to kernels and embeddings alone.

    Args:
      params: Parameters of a network.

    Returns:
      False for vectors and scalars, and for what is named ``bias`` or ``scale``.

    Example:
      >>> import jax.numpy as jnp
      >>> is_decayed({"Conv_0": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}})
      {'Conv_0': {'bias': False, 'kernel': True}}
    """

    def of_parameter(path: tuple, parameter: Any) -> bool:
        return parameter.ndim > 1 and getattr(path[-1], "key", None) not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(of_parameter, params)


def learning_rates(
    num_steps: int,
    *,
    learning_rate: float = 2e-4,
    schedule: Literal["constant", "cosine", "linear"] = "constant",
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Build a schedule of learning rates.

    Args:
      num_steps: Length of the run, at which the cosine and the linear schedule reach zero.
      learning_rate: Highest learning rate.
      schedule: Course of the learning rate after the warm-up.
      warmup_steps: Steps over which it rises linearly from zero.

    Returns:
      A function of the step.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> schedule = learning_rates(100, learning_rate=1.0, schedule="linear", warmup_steps=20)
      >>> [float(schedule(step)) for step in (0, 10, 20, 60, 100)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not 0 < learning_rate < 1:
        raise UserError(f"learning_rate must be above 0 and below 1, got {learning_rate}.")
    if not 0 <= warmup_steps <= num_steps:
        raise UserError(f"warmup_steps must be a whole number from 0 to {num_steps}, got {warmup_steps}.")
    remaining = max(1, num_steps - warmup_steps)
    after = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, remaining),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, remaining),
    }[schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), after], [warmup_steps])
