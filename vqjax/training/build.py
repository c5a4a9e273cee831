"""A task from a config, with its model, loss and optimizers, and the state that it starts from."""

import os
from collections.abc import Mapping
from functools import partial
from types import UnionType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from vqjax.data import Batch, ImageDataset, augment
from vqjax.data.batches import first_epoch_batches
from vqjax.data.dataset import pixels_of
from vqjax.data.reading import example_spec, has_clips
from vqjax.data.tokens import TokenDataset
from vqjax.errors import UserError, did_you_mean
from vqjax.functional.tokens import TokenInfo
from vqjax.losses.registry import LOSSES
from vqjax.models.classifiers import Classifier
from vqjax.models.registry import TRANSFORMERS, build_model, build_transformer
from vqjax.models.tokenizer import NETWORK
from vqjax.runtime.paths import is_url, local_path
from vqjax.runtime.signature import within
from vqjax.tasks.registry import TASKS
from vqjax.tasks.second_stage import SecondStageTask
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task
from vqjax.training.optimizer import OPTIMIZERS, build_optimizer
from vqjax.training.schedules import build_schedules

# No training step has this number, and a run that is made longer later starts from the same state.
_DATA_KEY = 2**31 - 1


def build_task(config: ConfigDict, images: ImageDataset) -> Task:
    """Build the task of a config.

    Args:
      config: A valid config.
      images: The training images, for losses that need to know them.

    Returns:
      The task.

    Raises:
      UserError: A constructor refuses its arguments; the message begins with the group.
    """
    is_of_tokens = config.model.name in TRANSFORMERS
    if is_of_tokens:
        _check_tokens(config, images)
        model, loss = build_transformer(config.model, images.info), None
    elif isinstance(images, TokenDataset):
        raise UserError(
            f"config.model.name must be one of {', '.join(TRANSFORMERS)} for tokens, got {config.model.name!r}."
        )
    else:
        model = build_model(config.model, config.quantizer)
        with within("config.loss"):
            loss = LOSSES.build(images=images, **config.loss)
    with within("config.optimizer"):
        optimizer = _build_optimizers(config.optimizer, config.num_steps)
    # A task takes the parts that it needs.
    wanted = TASKS.call(config.task.name).others
    if isinstance(optimizer, dict) and wanted.get("optimizer") is optax.GradientTransformation:
        raise UserError(
            f"config.optimizer must be one, with a name, for the task {config.task.name!r}, which trains one network, "
            f"got {', '.join(optimizer) or 'none'}; the task 'vqgan' takes one for each of its networks."
        )
    if config.schedules and "schedules" not in wanted:
        raise UserError(f"config.schedules must be empty for the task {config.task.name!r}, which has no schedules.")
    schedules = {}
    if isinstance(model, Classifier):
        _check_classifier(model, config, images)
    elif not is_of_tokens:
        with within("config.schedules"):
            schedules = build_schedules(config.schedules, model.quantizer)
        model = model.clone(microbatches=config.gradient_accumulation or 1)
    parts = {
        "schedules": schedules,
        "model": model,
        "loss": loss,
        "optimizer": optimizer,
        "tokens": getattr(images, "info", None),
        "augment": partial(augment, flip=config.data.flip, crop_padding=config.data.crop_padding),
    }
    options = dict(config.task)
    if is_of_tokens and config.task.tokenizer:
        options["tokenizer"] = _found(config.task.tokenizer, images.info)
    with within("config.task"):
        task = TASKS.build(**{name: part for name, part in parts.items() if name in wanted}, **options)
    numbers = {number for metric in task.metrics for number in metric.protocol}
    better = {
        name: higher for metric in task.metrics for name, higher in getattr(metric, "higher_is_better", {}).items()
    }
    if config.keep_best in better and (config.keep_best_mode == "max") != better[config.keep_best]:
        known = "max" if better[config.keep_best] else "min"
        raise UserError(
            f"config.keep_best_mode must be {known!r} for {config.keep_best}, got {config.keep_best_mode!r}."
        )
    if config.keep_best is not None and config.keep_best not in numbers:
        hint = did_you_mean(config.keep_best, numbers)
        raise UserError(f"config.keep_best={config.keep_best!r} is no metric of an evaluation; {hint}")
    return task


def _found(tokenizer: ConfigDict, tokens: TokenInfo) -> dict[str, Any]:
    """The run that made the tokens, at its step then: that of the config or, if it is not there, of their index."""
    noted, found = tokens.tokenizer or {}, dict(tokenizer)
    if found.get("step") is None:
        found["step"] = noted.get("step")
    place, other = found.get("workdir"), noted.get("workdir")
    if place and other and not is_url(place) and not local_path(place).exists():
        found["workdir"] = other if is_url(other) or local_path(other).exists() else place
    return found


def _check_classifier(model: Classifier, config: ConfigDict, images: ImageDataset) -> None:
    """Refuse what classifiers do not have, and data of other classes."""
    taken = TASKS.call(config.task.name).others.get("model")
    if isinstance(taken, type | UnionType) and not isinstance(model, taken):
        raise UserError(
            f"config.model.name must be that of an autoencoder for the task {config.task.name!r}, got "
            f"{config.model.name!r}; set config.task.name=classification."
        )
    if config.gradient_accumulation is not None:
        raise UserError(
            f"config.gradient_accumulation must be None for a classifier, got {config.gradient_accumulation}: its "
            "norms see the whole batch."
        )
    if has_clips(images):
        raise UserError("config.data must have images for a classifier, got clips; use another config.data.source.")
    if images.class_names is None:
        raise UserError("config.data must have labels for the task 'classification'; use folders of classes.")
    if len(images.class_names) > model.num_classes:
        raise UserError(
            f"config.model.num_classes must be at least {len(images.class_names)}, the classes of {images.name}, got "
            f"{model.num_classes}."
        )


def _check_tokens(config: ConfigDict, images: ImageDataset) -> None:
    """Refuse what models of tokens do not have, and data of images."""
    if not isinstance(images, TokenDataset):
        raise UserError(
            f"config.data.source must be tokens for the model {config.model.name!r}, got {config.data.source!r}; write "
            "them with vqjax tokens."
        )
    if not issubclass(TASKS[config.task.name], SecondStageTask):
        raise UserError(
            f"config.task.name must be that of a model of tokens for {config.model.name!r}, got {config.task.name!r}."
        )
    unused = {"quantizer": config.quantizer, "loss": config.loss, "gradient_accumulation": config.gradient_accumulation}
    for name, value in unused.items():
        if value:
            off = "{}" if name == "quantizer" else None
            raise UserError(f"config.{name} must be {off} for the model {config.model.name!r}, which has none.")


def _build_optimizers(
    config: Mapping[str, Any] | ConfigDict, num_steps: int
) -> optax.GradientTransformation | dict[str, optax.GradientTransformation]:
    """One optimizer, or one for each network."""
    if "name" in config:
        return build_optimizer(config, num_steps)
    optimizers = {}
    for network, group in config.items():
        with within(network):
            optimizers[network] = build_optimizer(group, num_steps)
    return optimizers


def learning_rates(
    config: Mapping[str, Any] | ConfigDict, num_steps: int, network: str = NETWORK
) -> dict[str, optax.Schedule]:
    """Return the schedules of the optimizers in a config, by the network that each trains.

    Args:
      config: The group ``optimizer``.
      num_steps: Length of the run.
      network: What a single optimizer trains.

    Returns:
      Learning rates as functions of the number of updates.

    Example:
      >>> rates = learning_rates({"name": "adam", "learning_rate": 0.5, "warmup_steps": 10}, num_steps=100)
      >>> float(rates["generator"](5))
      0.25
    """
    groups = {network: config} if "name" in config else config
    return {network: OPTIMIZERS.build(**group).learning_rates(num_steps) for network, group in groups.items()}


def check_fits(task: Task, key: Key[Array, ""], batch: Batch) -> TrainState:
    """Refuse images that the networks of a task cannot take, and networks that memory cannot hold; computes nothing.

    Args:
      task: The task.
      key: Key of the initial values.
      batch: Batch of one row.

    Returns:
      The state before the first step, of the shapes of arrays.

    Raises:
      UserError: The images do not fit the networks, or the networks the memory.
    """
    try:
        state = jax.eval_shape(task.init, key, batch)
    except UserError as error:
        if "tokens" in batch:
            raise
        *frames, height, width, _ = pixels_of(batch).shape[1:]
        of = f"clips of {frames[0]} frames" if frames else "images"
        raise UserError(
            f"config.model and config.quantizer must fit {of} of {height} x {width} pixels (config.data.image_size): "
            f"{error}"
        ) from error
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if needed > (available := _memory()):
        raise UserError(
            f"config.model and config.quantizer must fit into memory, got {needed / 1e9:.0f} GB for a memory of "
            f"{available / 1e9:.0f} GB; lower the width of the model or the number of codes."
        )
    return state


def _memory() -> int:
    """Bytes of all devices of this process; of the machine, if a backend does not report its own."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(of_device.get("bytes_limit", 0) for of_device in statistics) or of_machine


def initial_state(task: Task, dataset: ImageDataset, *, seed: int, batch_size: int) -> TrainState:
    """Return the state before the first step of a new run.

    Args:
      task: The task.
      dataset: The training examples.
      seed: Seed of the run.
      batch_size: Images per step.

    Returns:
      The state, on one device.
    """
    key = jax.random.key(seed)
    state = task.init(key, example_batch(dataset))
    batches = first_epoch_batches(dataset, seed, batch_size)
    return task.init_from_data(state, batches, jax.random.fold_in(key, _DATA_KEY))


def example_batch(dataset: ImageDataset) -> Batch:
    """Return a batch of one row with the shapes and dtypes of a dataset."""
    return {name: jnp.zeros((1, *spec.shape), spec.dtype) for name, spec in example_spec(dataset).items()}
