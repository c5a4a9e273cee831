"""Evaluation: one pass over a split, whose outputs all metrics consume."""

import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from vqjax.data import Batch
from vqjax.data.batches import batch_axes, num_parts
from vqjax.errors import UserError
from vqjax.evaluation.collectors import Collector
from vqjax.evaluation.metric import Intervals, Metric, Outputs
from vqjax.evaluation.partial import PartialSums
from vqjax.functional.sharding import with_automatic_axes
from vqjax.runtime.processes import is_main_process


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
      metrics: Numbers by name; None if a metric does not apply.
      protocol: How each of them was measured.
      collected: Arrays that collectors kept, such as ``image`` and ``reconstruction`` of the first images.
      intervals: 95 % intervals of numbers by name, if they were asked for, from images drawn anew with replacement.
    """

    metrics: dict[str, float | int | None]
    protocol: dict[str, str]
    collected: dict[str, np.ndarray]
    intervals: Intervals = field(default_factory=dict)


def evaluate(
    evaluate_batch: Callable[[Batch], Outputs],
    batches: Iterable[Batch],
    metrics: Sequence[Metric],
    *,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
    intervals: bool = False,
    partial: PartialSums | None = None,
) -> EvaluationResult:
    """Run a model once over every image of a split, and compute metrics of its outputs.

    Args:
      evaluate_batch: Function from a batch to a dictionary of outputs: arrays with one row per image, such as
        ``reconstruction`` (in [-1, 1]) and ``indices``, or scalars. It is compiled here. Metrics receive the outputs in
        addition to the entries of the batch. Pass ``jax.tree_util.Partial(function, variables)`` to let repeated
        evaluations share one compilation.
      batches: Batches of equal shape, each with ``valid``, bool ``[batch]``, which is False for the rows that pad the
        last one. Padding is ignored everywhere.
      metrics: Metrics and collectors.
      progress: Called after every batch with the number of images done.
      mesh: Devices that share each batch along the axes of ``batch_axes``; every process has to give the same batches.
      intervals: Whether to compute 95 % intervals, too, of the means over images.
      partial: Sums of an evaluation that did not end, to which these batches are added; batches then have ``index``.
        They stay where they are until ``partial.remove()``, as long as the numbers are not written.

    Returns:
      The results of the metrics, in the order given, and what the collectors kept.

    Raises:
      UserError: The split is empty, two metrics have numbers of one name, or a metric cannot be computed.

    Example:
      >>> from vqjax.evaluation import MSE, CodeUsage
      >>> def one_gray_token(batch):
      ...     gray = jnp.zeros(batch["image"].shape)
      ...     return {"reconstruction": gray, "indices": jnp.zeros([2, 1, 1], jnp.int32)}
      >>> batch = {"image": np.full([2, 4, 4, 3], 255, np.uint8), "valid": np.array([True, False])}
      >>> result = evaluate(one_gray_token, [batch], [MSE(), CodeUsage(num_codes=2)])
      >>> round(result.metrics["mse_01"], 4), result.metrics["usage_split"]
      (0.25, 0.5)
    """
    if not isinstance(evaluate_batch, jax.tree_util.Partial):
        evaluate_batch = jax.tree_util.Partial(evaluate_batch)
    metrics = tuple(metrics)
    names = collections.Counter(name for metric in metrics for name in metric.protocol)
    if names and (most := names.most_common(1)[0])[1] > 1:
        raise UserError(f"metrics must name each number differently, got {most[0]} of {most[1]}; leave one out.")
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    states = [metric.init() for metric in metrics]
    images = 0
    if partial is not None:
        states, images = partial.states(states), partial.images
    for batch in batches:
        rows, valid = len(batch["valid"]), int(np.sum(batch["valid"]))
        if valid == 0:
            continue
        shared = batch if mesh is None else _shared_by_rows(batch, mesh)
        measured = _measure(evaluate_batch, metrics, shared, rows, whole)
        states = [metric.update(*of_metric) for metric, *of_metric in zip(metrics, states, measured, strict=True)]
        images += valid
        if partial is not None and is_main_process():
            partial.save(states, images=images, next_index=int(batch["index"][valid - 1]) + 1)
        if progress is not None:
            progress(images)
    if images == 0:
        raise UserError("batches must hold at least one valid image, got none; choose a non-empty split.")
    numbers, protocol, collected, ends = {}, {}, {}, {}
    for metric, state in zip(metrics, states, strict=True):
        computed = metric.compute(state)
        if isinstance(metric, Collector):
            collected |= computed
        else:
            numbers |= computed
            described = metric.protocol
            protocol |= {name: described[name] for name in computed}
            ends |= metric.intervals(state) if intervals else {}
    return EvaluationResult(numbers, protocol, collected, ends)


def _shared_by_rows(batch: Batch, mesh: Mesh) -> Batch:
    """Divide the rows of a batch over the devices, padded with zeros to a multiple of their number."""
    sharding = NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))

    def shared(array: Array | np.ndarray) -> Array:
        missing = -len(array) % num_parts(mesh)
        padded = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])

    return {name: shared(array) for name, array in batch.items()}


@jax.jit(static_argnames=("rows", "whole"))
def _measure(
    evaluate_batch: Callable[[Batch], Outputs],
    metrics: tuple[Metric, ...],
    batch: Batch,
    rows: int,
    whole: NamedSharding | None,
) -> list[PyTree[Array]]:
    measured = _measured(evaluate_batch, metrics, batch, rows)
    # Every process needs all of it.
    return measured if whole is None else jax.lax.with_sharding_constraint(measured, whole)


@with_automatic_axes()
def _measured(
    evaluate_batch: Callable[[Batch], Outputs], metrics: tuple[Metric, ...], batch: Batch, rows: int
) -> list[PyTree[Array]]:
    # One program for the model and all metrics: intermediate results that several metrics need are computed once, and
    # only the reductions leave the devices.
    outputs = batch | evaluate_batch(batch)
    for name, value in outputs.items():
        if jnp.ndim(value) and len(value) != len(batch["valid"]):
            raise UserError(
                f"`{name}` must have a row for each of the {len(batch['valid'])} images of a batch, got shape "
                f"{jnp.shape(value)}; return it for all of them, or as a scalar."
            )
    if len(batch["valid"]) > rows:
        outputs = {name: value[:rows] if jnp.ndim(value) else value for name, value in outputs.items()}
    return [metric.measure(outputs) for metric in metrics]
