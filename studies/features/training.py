"""Training of the classifiers whose features are used."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from studies.features.weights import rounded
from vqjax.data import Example, Splits, augment, batch_indices, materialize, to_model_range
from vqjax.errors import UserError
from vqjax.models.resnet import ResNet
from vqjax.reporting.progress import Progress

_STEPS_PER_REPORT = 10
_LABEL_SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of a training.

    Attributes:
      channels: Channels of the levels of :class:`vqjax.models.ResNet`.
      image_size: Side of the images in pixels.
      crop_padding: Largest random shift in pixels.
      epochs: Passes over the training images.
      batch_size: Images per step.
      learning_rate: Highest learning rate.
      weight_decay: Of all parameters.
      seed: Seed of the parameters, of the order of the images and of the augmentation.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    image_size: int = 32
    crop_padding: int = 4
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    seed: int = 0


class Classifier(nn.Module):
    """A linear layer on the means of the last features.

    Attributes:
      network: Network that returns features of several levels.
      num_classes: Number of classes.
    """

    network: nn.Module
    num_classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Return logits."""
        return nn.Dense(self.num_classes, name="head")(jnp.mean(self.network(images, train)[-1], axis=(1, 2)))


def train_network(splits: Splits, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a classifier, with progress on standard error.

    Args:
      splits: Labelled images.
      setting: Settings of the training.

    Returns:
      Variables of its feature network, and what was measured: ``accuracy``, the share of the held-out images that are
      classified correctly, and the numbers of images, classes and parameters.

    Raises:
      UserError: There are fewer training images than a batch has.
    """
    if len(splits.train) < setting.batch_size:
        raise UserError(f"{splits.train.name} must have at least {setting.batch_size} images, got {len(splits.train)}.")
    train, evaluation = (materialize(dataset) for dataset in splits)
    classifier = Classifier(ResNet(setting.channels), len(splits.train.class_names))
    steps = setting.epochs * (len(train["image"]) // setting.batch_size)
    schedule = optax.cosine_onecycle_schedule(steps, setting.learning_rate, pct_start=0.25)
    optimizer = optax.chain(
        optax.add_decayed_weights(setting.weight_decay), optax.sgd(schedule, momentum=0.9, nesterov=True)
    )

    @jax.jit(donate_argnums=(0, 1))
    def step(variables, opt_state, number, images, labels):
        key = jax.random.fold_in(jax.random.key(setting.seed), number)
        images = to_model_range(augment(key, images, flip=True, crop_padding=setting.crop_padding))

        def loss(params):
            state = variables | {"params": params}
            logits, updated = classifier.apply(state, images, train=True, mutable=["batch_stats"])
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), _LABEL_SMOOTHING)
            return jnp.mean(optax.softmax_cross_entropy(logits, targets)), updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
        return updated | {"params": optax.apply_updates(variables["params"], updates)}, opt_state, value

    variables = classifier.init(jax.random.key(setting.seed), to_model_range(train["image"][:1]))
    opt_state = optimizer.init(variables["params"])
    with Progress(steps, 0, setting.batch_size) as progress:
        for number in range(steps):
            chosen = batch_indices(setting.seed, number, setting.batch_size, len(train["image"]))
            batch = train["image"][chosen], train["label"][chosen]
            variables, opt_state, value = step(variables, opt_state, number, *batch)
            # Reading a number waits for its step.
            if (number + 1) % _STEPS_PER_REPORT == 0 or number + 1 == steps:
                progress.metrics({"loss": value})
                progress.update(number + 1)
    variables = rounded(variables)
    network = {name: of_collection["network"] for name, of_collection in variables.items()}
    measured = {
        "accuracy": _accuracy(classifier, variables, evaluation),
        "training_images": len(train["image"]),
        "held_out_images": len(evaluation["image"]),
        "classes": classifier.num_classes,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(network["params"])),
    }
    return network, measured


def _accuracy(classifier: Classifier, variables: dict[str, Any], examples: Example) -> float:
    @jax.jit
    def classes(variables: dict[str, Any], images: Array) -> Int[Array, " batch"]:
        return jnp.argmax(classifier.apply(variables, to_model_range(images)), axis=-1)

    size = 500
    parts = [examples["image"][start : start + size] for start in range(0, len(examples["image"]), size)]
    return float(np.mean(np.concatenate([classes(variables, part) for part in parts]) == examples["label"]))
