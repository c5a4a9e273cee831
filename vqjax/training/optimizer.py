"""Optimizers by name and arguments, with schedule, warm-up, clipping and weight decay from optax."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.runtime.signature import Registry

_UNDECAYED = frozenset({"bias", "scale", "shift"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Optimizer of one network, before the length of the run is known.

    Attributes:
      learning_rate: Highest learning rate.
      schedule: Course of the learning rate after the warm-up; ``"cosine"`` and ``"linear"`` fall to ``end_fraction``.
      schedule_steps: Steps of that course, after which the learning rate stays as it is; None: until the run's end.
      end_fraction: Learning rate at its end, as a fraction of the highest one.
      warmup_steps: Steps over which the learning rate rises linearly from zero.
      clip_norm: Largest global norm of the gradient; None for no clipping.
      quantizer_learning_rate: Constant learning rate of the quantizer's parameters, such as learned codes, which can
        then follow a model whose own rate falls; None for that of the other parameters.

    Raises:
      UserError: An argument is out of range.
    """

    learning_rate: float = 2e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    schedule_steps: int | None = None
    end_fraction: float = 0.0
    warmup_steps: int = 0
    clip_norm: float | None = None
    quantizer_learning_rate: float | None = None

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate > 0, "above 0", self.learning_rate)
        _check("warmup_steps", self.warmup_steps >= 0, "a non-negative integer", self.warmup_steps)
        _check("end_fraction", 0 <= self.end_fraction <= 1, "in [0, 1]", self.end_fraction)
        if self.schedule_steps is not None:
            _check("schedule_steps", self.schedule_steps >= 1, "at least 1, or None", self.schedule_steps)
        if self.clip_norm is not None:
            _check("clip_norm", self.clip_norm > 0, "above 0, or None", self.clip_norm)
        if self.quantizer_learning_rate is not None:
            rate = self.quantizer_learning_rate
            _check("quantizer_learning_rate", rate > 0, "above 0, or None", rate)

    @abc.abstractmethod
    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Return the optax optimizer for a schedule of learning rates."""

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Return the optax optimizer for a run of ``num_steps``.

        Raises:
          UserError: The warm-up is longer than the run.

        Example:
          >>> optimizer = Adam(learning_rate=1e-3, schedule="cosine", clip_norm=1.0).build(num_steps=100)
        """
        clipping = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        optimizer = self.transformation(self.learning_rates(num_steps))
        if self.quantizer_learning_rate is not None:
            of_quantizer = self.transformation(optax.constant_schedule(self.quantizer_learning_rate))
            optimizer = optax.partition({"model": optimizer, "quantizer": of_quantizer}, _parts)
        return optax.chain(*clipping, optimizer)

    def learning_rates(self, num_steps: int) -> optax.Schedule:
        """Return the learning rate as a function of the step.

        Raises:
          UserError: The warm-up is longer than the run.

        Example:
          >>> rates = SGD(learning_rate=0.5, schedule="linear", warmup_steps=20).learning_rates(num_steps=100)
          >>> [float(rates(step)) for step in (0, 10, 20, 60, 100)]
          [0.0, 0.25, 0.5, 0.25, 0.0]
        """
        fits = self.warmup_steps <= num_steps
        _check("warmup_steps", fits, f"at most config.num_steps={num_steps}", self.warmup_steps)
        steps = self.schedule_steps or max(1, num_steps - self.warmup_steps)
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(self.learning_rate, steps, self.end_fraction)
        elif self.schedule == "linear":
            after = optax.linear_schedule(self.learning_rate, self.end_fraction * self.learning_rate, steps)
        else:
            after = optax.constant_schedule(self.learning_rate)
        warmup = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam; see :func:`optax.adam`, and :class:`Optimizer` for the learning rate.

    Attributes:
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      eps: Added to the root of that mean, against a division by zero.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = Adam(learning_rate=0.1).build(num_steps=10)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, _ = optimizer.update(jnp.array([3.0, -0.5]), state)
      >>> print((updates / 0.1).round())  # the first step depends on the signs alone
      [-1.  1.]

    Source: Kingma and Ba, 2015 (arXiv 1412.6980).
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decays(b1=self.b1, b2=self.b2)
        _check("eps", self.eps >= 0, "at least 0", self.eps)

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adam(learning_rate, self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay of what :func:`is_decayed` selects; see :func:`optax.adamw`.

    Attributes:
      weight_decay: Part of a parameter that a step at learning rate 1 removes.

    Raises:
      UserError: An argument is out of range.

    Source: Loshchilov and Hutter, 2019 (arXiv 1711.05101).
    """

    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("weight_decay", self.weight_decay >= 0, "at least 0", self.weight_decay)

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(learning_rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=is_decayed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent; see :func:`optax.sgd`.

    Attributes:
      momentum: Decay of the sum of gradients; None for the gradient alone.
      nesterov: Look ahead along the momentum.
      weight_decay: Multiple of a parameter that is added to its gradient, where :func:`is_decayed`; None for none.

    Raises:
      UserError: An argument is out of range.
    """

    momentum: float | None = None
    nesterov: bool = False
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum is not None:
            _check_decays(momentum=self.momentum)
        if self.weight_decay is not None:
            _check("weight_decay", self.weight_decay >= 0, "at least 0, or None", self.weight_decay)
        _check("nesterov", not (self.nesterov and self.momentum is None), "False without momentum", self.nesterov)

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        decay = [] if self.weight_decay is None else [optax.add_decayed_weights(self.weight_decay, is_decayed)]
        return optax.chain(*decay, optax.sgd(learning_rate, self.momentum, self.nesterov))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion, with weight decay of what :func:`is_decayed` selects; see :func:`optax.lion`.

    Attributes:
      b1: Weight of the mean of gradients in the sign that a step follows.
      b2: Decay of that mean.
      weight_decay: Part of a parameter that a step at learning rate 1 removes.

    Raises:
      UserError: An argument is out of range.

    Source: Chen et al., 2023 (arXiv 2302.06675).
    """

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decays(b1=self.b1, b2=self.b2)
        _check("weight_decay", self.weight_decay >= 0, "at least 0", self.weight_decay)

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.lion(learning_rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=is_decayed)


OPTIMIZERS = Registry({"adam": Adam, "adamw": AdamW, "sgd": SGD, "lion": Lion})
"""The optimizers by name."""


def is_decayed(params: PyTree) -> PyTree:
    """Return whether weight decay applies to each parameter: to kernels and embeddings alone.

    Args:
      params: Parameters of a network.

    Returns:
      False for vectors and scalars, and for parameters named ``bias``, ``scale`` or ``shift``.

    Example:
      >>> import jax.numpy as jnp
      >>> is_decayed({"Conv_0": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}})
      {'Conv_0': {'bias': False, 'kernel': True}}
    """

    def of_parameter(path: tuple[Any, ...], parameter: Any) -> bool:
        return parameter.ndim > 1 and getattr(path[-1], "key", None) not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(of_parameter, params)


def _parts(params: PyTree) -> PyTree:
    """Name the part of a tokenizer or classifier that each parameter is of."""

    def of_parameter(path: tuple[Any, ...], _: Any) -> str:
        return "quantizer" if str(getattr(path[0], "key", None)).startswith("quantizer") else "model"

    return jax.tree_util.tree_map_with_path(of_parameter, params)


def build_optimizer(config: Mapping[str, Any] | ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Build the optimizer that a group of a config describes.

    Args:
      config: ``name``, a key of ``OPTIMIZERS``, and arguments; those it leaves out have their defaults.
      num_steps: Length of the run.

    Returns:
      The optax transformation.

    Raises:
      UserError: A name is unknown, or a value cannot be used.

    Example:
      >>> optimizer = build_optimizer({"name": "adamw", "weight_decay": 0.05}, num_steps=100)
    """
    return OPTIMIZERS.build(**config).build(num_steps)


def updates_taken(opt_state: PyTree) -> Int[Array, ""] | None:
    """Return how many updates an optimizer of :func:`build_optimizer` has made, from which its learning rate follows.

    Args:
      opt_state: Its state.

    Returns:
      A copy of the number; None if the state of a different optimizer has none.

    Example:
      >>> import jax.numpy as jnp
      >>> int(updates_taken(SGD().build(num_steps=100).init(jnp.ones(3))))
      0
    """
    # All parts of the state count the same updates.
    counts = optax.tree.get_all_with_path(opt_state, "count")
    return jnp.copy(counts[0][1]) if counts else None


def _check_decays(**decays: float) -> None:
    for name, decay in decays.items():
        _check(name, 0 <= decay < 1, "at least 0 and below 1", decay)


def _check(name: str, allowed: bool, expected: str, value: object) -> None:
    if not allowed:
        raise UserError(f"{name} must be {expected}, got {value}.")
