"""Base class of tasks: what the training loop asks of a recipe."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, UInt8

from vqjax.data import Batch
from vqjax.evaluation import Metric
from vqjax.models.tokenizer import NETWORK
from vqjax.tasks.state import TrainState

Metrics = dict[str, Float[Array, ""]]


class Task(abc.ABC):
    """A training recipe: networks, losses and optimizers, and how a step combines them.

    A batch is a dictionary of ``image``, uint8 ``[batch, height, width, channels]``, or ``video``, which has an axis of
    frames behind the first, or ``tokens``; ``label``, int32 ``[batch]``, if the data have labels; and ``valid``, bool
    ``[batch]``, during evaluation. Augmentation and conversion to the pixel range of the networks belong to the task.

    Attributes:
      metrics: Metrics of an evaluation, which consume what ``evaluate`` returns.
      facts: Facts about the networks by name, shown in the report's header.
      mesh_axes: Sizes of the axes of the device mesh besides ``data``.
      network: Name of the network that an optimizer trains which is the only one of a config.
      reconstructs: Whether evaluations have a ``reconstruction`` of each image, and its ``indices``.
      mutable_fields: Dotted names of config fields that may change when a run resumes, because they do not change the
        result of a step by more than rounding.
    """

    metrics: Sequence[Metric] = ()
    facts: Mapping[str, Any] = {}
    mesh_axes: Mapping[str, int] = {}
    network: str = NETWORK
    reconstructs: bool = True
    mutable_fields: frozenset[str] = frozenset()

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step, from the seed alone.

        A run that resumes calls it as well, for the structure of the state and for its frozen networks.

        Args:
          key: Key of the initial values.
          batch: Batch of one row; only its shapes and dtypes matter.

        Raises:
          UserError: The networks cannot take such a batch.
        """

    def init_from_data(self, state: TrainState, batches: Iterator[Batch], key: Key[Array, ""]) -> TrainState:
        """Return the state of a new run, if its start depends on the data; by default, the state as it is.

        Args:
          state: State of :meth:`init`.
          batches: Training batches in training order, on the host.
          key: Key that no step uses.
        """
        del batches, key
        return state

    @abc.abstractmethod
    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step; pure, called inside ``jit``.

        Args:
          state: State before the step.
          batch: The global batch.
          key: ``fold_in(key(seed), step)``.

        Returns:
          The state after the step, with ``log_sums`` and ``frozen`` untouched, and the metrics of the batch. A step
          counts as failed if ``loss``, or a metric whose name ends in ``gradient_norm``, is not finite.
        """

    @abc.abstractmethod
    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the outputs that the metrics need in addition to the batch itself; pure, called inside ``jit``.

        Args:
          state: State to evaluate, without the states of optimizers.
          batch: Batch with ``valid``, False for rows of padding.

        Returns:
          Arrays with a row for each image, and scalars.
        """

    def partition(self, path: tuple[str, ...], array: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        """Return the sharding of an array of the state over the device mesh; by default it is replicated.

        Args:
          path: Path of the array in the state, such as ``("params", "generator", "encoder", "Conv_0", "kernel")``.
          array: The array, or its shape.
        """
        del path, array
        return PartitionSpec()

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """Return one line about an evaluation.

        Args:
          metrics: Results by name.
        """
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float))

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """Return a line about what a run could do better by its final evaluation, by default none.

        Args:
          metrics: Results by name.
        """
        del metrics

    def generate(self, state: TrainState) -> dict[str, np.ndarray]:
        """Return what the networks make without data, by name, to join what collectors keep; by default nothing.

        Args:
          state: State as in :meth:`evaluate`.
        """
        del state
        return {}

    def pictures(
        self, collected: Mapping[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "*frames height width channels"]]:
        """Return pictures of an evaluation by name; those with frames move.

        Args:
          collected: What the collectors among ``metrics`` kept, and :meth:`generate` made.
        """
        del collected
        return {}
