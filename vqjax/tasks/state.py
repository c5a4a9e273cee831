"""Training state: everything that changes from step to step, as one pytree."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def one_program(method: Callable[..., Any]) -> functools.cached_property:
    """Decorate a method of a task that takes arrays: it is one compiled program, traced once for each task.

    The compilation cache keeps it between runs, and a task whose shapes have been checked is not traced again.

    Args:
      method: Takes the task and arrays, or dictionaries of arrays.

    Example:
      >>> class Doubler:
      ...     @one_program
      ...     def double(self, x):
      ...         print("traced")
      ...         return 2 * x
      >>> doubler = Doubler()
      >>> jax.eval_shape(doubler.double, jnp.float32(1)).shape, float(doubler.double(jnp.float32(3)))
      traced
      ((), 6.0)
    """
    return functools.cached_property(lambda task: jax.jit(functools.partial(method, task)))


class TrainState(flax.struct.PyTreeNode):
    """State of a run. The position in the data and all randomness follow from ``step`` and the seed.

    The leaves are arrays, or descriptions of arrays such as ``jax.ShapeDtypeStruct``. The dictionaries by network let a
    task train any number of networks, each with its own optimizer.

    Attributes:
      step: Number of steps taken, an int32 scalar.
      params: Parameters by network.
      variables: Other variables by network and collection, such as ``variables["generator"]["codebook"]``; optimizers
        never see them.
      opt_state: States of the optimizers by name, usually that of the network.
      log_sums: Sums of the metrics since the last log line, and, under the key ``steps``, the number of steps they
        cover. Part of the state so that the log of a resumed run equals that of an uninterrupted one.
      ema_params: Moving average of ``params`` for evaluation; None if parameters are not averaged.
      frozen: Variables by network that never change, such as those of a perceptual loss. No checkpoint holds them:
        the task makes them again when a run resumes.
    """

    step: Any
    params: dict[str, Any]
    variables: dict[str, Any]
    opt_state: dict[str, Any]
    log_sums: dict[str, Any] = flax.struct.field(default_factory=dict)
    ema_params: Any = None
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """Return the fields that checkpoints hold: every field that is not None, except ``frozen``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name != "frozen" and value is not None}

    def trained(self, network: str) -> dict[str, Any]:
        """Return the variables of a network as ``Module.apply`` takes them, with the trained parameters."""
        return {"params": self.params[network], **self.variables[network]}

    def evaluated(self, network: str) -> dict[str, Any]:
        """Return the variables of a network for evaluation: with averaged parameters, if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params[network], **self.variables[network]}

    def apply_gradient(
        self, network: str, gradient: PyTree, optimizer: optax.GradientTransformation, variables: dict[str, PyTree]
    ) -> "TrainState":
        """Return the state after one optimizer step on one network; ``step`` and averages stay as they are.

        Args:
          network: Name of the network, and of its optimizer's state.
          gradient: Gradient of its parameters.
          optimizer: Optimizer that made ``opt_state[network]``.
          variables: Other variables of the network after the step, by collection.

        Returns:
          The state.
        """
        params = self.params[network]
        updates, opt_state = optimizer.update(gradient, self.opt_state[network], params)
        return self.replace(
            params=self.params | {network: optax.apply_updates(params, updates)},
            variables=self.variables | {network: variables},
            opt_state=self.opt_state | {network: opt_state},
        )

    def with_network(self, network: str, variables: dict[str, PyTree]) -> "TrainState":
        """Return the state with other variables of a network, whose averages start from its new parameters.

        Args:
          network: Name of the network.
          variables: Its variables as ``Module.apply`` takes them; collections that are left out stay as they are.

        Returns:
          The state.
        """
        params = {network: variables["params"]}
        others = {name: tree for name, tree in variables.items() if name != "params"}
        return self.replace(
            params=self.params | params,
            variables=self.variables | {network: self.variables[network] | others},
            ema_params=None if self.ema_params is None else self.ema_params | jax.tree.map(jnp.copy, params),
        )

    def finish_step(self, ema_decay: float | None = None) -> "TrainState":
        """Return the state with the step counted and the parameters averaged.

        Args:
          ema_decay: Share of the average that a step keeps; None if parameters are not averaged.

        Returns:
          The state.
        """
        state = self.replace(step=self.step + 1)
        if ema_decay is None:
            return state
        params = {network: state.params[network] for network in state.ema_params}
        return state.replace(ema_params=optax.incremental_update(params, state.ema_params, 1 - ema_decay))
