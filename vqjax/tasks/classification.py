"""Training of an image classifier, with quantizers between its layers or without."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from vqjax.data import Batch, to_model_range
from vqjax.errors import UserError
from vqjax.evaluation import CodeUsage, ImageCount, Metric
from vqjax.evaluation.metrics import AtPlace, Classification
from vqjax.functional.numbers import is_number
from vqjax.losses.classification import CrossEntropy
from vqjax.models.classifiers import Classifier, ClassifierOutput, name_at
from vqjax.quantizers.base import QuantizerOutput
from vqjax.quantizers.codebooks import get_codebook
from vqjax.quantizers.validation import is_fraction, require, require_count, require_positive
from vqjax.quantizers.vector import VectorQuantizer
from vqjax.tasks.alternating import alternating_steps
from vqjax.tasks.state import TrainState, one_program
from vqjax.tasks.task import Metrics, Task

CLASSIFIER = "classifier"
"""Key of the network in a training state."""

_LATENTS_PER_CODE = 64
_MOST_LATENTS = 2**18


@dataclasses.dataclass(frozen=True)
class ClassificationTask(Task):
    """Task that trains a classifier with the cross-entropy of its labels plus the losses of its quantizers.

    Batch norms see the global batch. The codes of a ``GradientCodebook`` with ``sync_nu`` also get the gradient of the
    task, and with ``codebook_steps`` those of every ``VectorQuantizer`` take steps of their own before each step.

    Attributes:
      model: The classifier.
      optimizer: Optimizer of all its parameters.
      loss: :class:`vqjax.losses.classification.CrossEntropy`.
      augment: Augmentation of uint8 images: a function ``(key, images) -> images``.
      mixup: Parameter of the beta distribution from which the share of each of two mixed images is drawn, one for a
        batch; None for no mixup.
      kmeans_init: Whether the codes of a new run start from clusters of the untrained network's features, place by
        place.
      codebook_steps: Steps of the codes alone before each step; None for none. The codebooks must be learned by
        gradient with ``weight=0``.
      codebook_learning_rate: Learning rate of these steps.
      codebook_momentum: Momentum of these steps.
      ema_decay: Decay of an exponential moving average of the parameters, which evaluations use; None for none.

    Raises:
      UserError: An argument is out of range, or the codes of a quantizer cannot take steps of their own.

    Example:
      >>> import numpy as np
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.data.arrays import ArrayDataset
      >>> from vqjax.models.classifiers import ViT
      >>> images = np.zeros((2, 32, 32, 3), np.uint8)
      >>> loss = CrossEntropy(ArrayDataset("black", images, image_size=32))
      >>> vq = VectorQuantizer(num_codes=16)
      >>> model = ViT(quantizers={"block_1": vq}, dim=16, depth=2, heads=1, mlp_dim=16)
      >>> task = ClassificationTask(model, optax.sgd(0.1), loss)
      >>> batch = {"image": jnp.asarray(images), "label": jnp.array([3, 5], jnp.int32)}
      >>> state = task.init(jax.random.key(0), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
      >>> int(state.step), bool(metrics["loss"] > 0), "perplexity" in metrics
      (1, True, True)

    Source: Huh et al., ICML 2023 (arXiv 2305.08842), for quantizers in classifiers.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    loss: Callable[[Array, Array], Float[Array, ""]]
    augment: Callable[[Key[Array, ""], Array], Array] = lambda key, images: images
    _: dataclasses.KW_ONLY
    mixup: float | None = None
    kmeans_init: bool = False
    codebook_steps: int | None = None
    codebook_learning_rate: float = 1.0
    codebook_momentum: float = 0.9
    ema_decay: float | None = None

    network: ClassVar = CLASSIFIER
    reconstructs: ClassVar = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, Classifier) or not isinstance(self.loss, CrossEntropy):
            raise UserError(
                "The task 'classification' needs a classifier (config.model.name=resnet18) and the loss "
                f"config.loss.name=cross_entropy, got {type(self.model).__name__} and {type(self.loss).__name__}."
            )
        require(isinstance(self.kmeans_init, bool), "kmeans_init", self.kmeans_init, "True or False")
        if self.mixup is not None:
            require_positive("mixup", self.mixup)
        in_range = self.ema_decay is None or is_number(self.ema_decay, lambda decay: 0 < decay < 1)
        require(in_range, "ema_decay", self.ema_decay, "above 0 and below 1, or None")
        require_positive("codebook_learning_rate", self.codebook_learning_rate)
        require(is_fraction(self.codebook_momentum), "codebook_momentum", self.codebook_momentum, "a number in [0, 1)")
        if self.codebook_steps is not None:
            require_count("codebook_steps", self.codebook_steps, largest=1000)
            for place, quantizer in self.model.quantizers.items():
                if not _learns_alone(quantizer):
                    raise UserError(
                        "codebook_steps needs quantizers 'vq' with codebook.name='gradient' and codebook.weight=0, got "
                        f"another at {place}; otherwise the codebook loss would be applied twice, or there is none."
                    )
        if not self.model.quantizers:
            for name, off in (("kmeans_init", False), ("codebook_steps", None)):
                expected = f"{off} for a classifier without quantizers"
                require(getattr(self, name) == off, name, getattr(self, name), expected)

    @property
    def facts(self) -> dict[str, Any]:
        """The places of quantizers with their numbers of codes, for the report's header."""
        return {f"num_codes_{place}": quantizer.num_codes for place, quantizer in self._quantizers.items()}

    @property
    def _quantizers(self) -> Mapping[str, Any]:
        """The quantizers in the order in which features pass them."""
        return {place: self.model.quantizers[place] for place in self.model.places if place in self.model.quantizers}

    @property
    def _codebook_optimizer(self) -> optax.GradientTransformation:
        return optax.sgd(self.codebook_learning_rate, momentum=self.codebook_momentum)

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        if "label" not in batch:
            raise UserError("the data have no labels; use a source that has them, such as folders of classes.")
        return self._initial_state(key, batch)

    @one_program
    def _initial_state(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        params_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        keys = {"params": params_key, "quantizer": quantizer_key, "dropout": dropout_key}
        variables: dict[str, PyTree] = self.model.init(keys, to_model_range(batch["image"]))
        params = {CLASSIFIER: variables.pop("params")}
        opt_state = {CLASSIFIER: self.optimizer.init(params[CLASSIFIER])}
        if self.codebook_steps is not None:
            for place in self._quantizers:
                of_place = params[CLASSIFIER][name_at(place)]
                opt_state[f"codebook_{place}"] = self._codebook_optimizer.init(of_place)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            variables={CLASSIFIER: variables},
            opt_state=opt_state,
            ema_params=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    def init_from_data(self, state: TrainState, batches: Iterator[Batch], key: Key[Array, ""]) -> TrainState:
        """Start the codes from clusters if ``kmeans_init`` is set; see :meth:`Task.init_from_data`."""
        if not self.kmeans_init:
            return state
        wanted = _LATENTS_PER_CODE * max(quantizer.num_codes for quantizer in self._quantizers.values())
        features = jax.jit(lambda state, images, key: self._features(state, to_model_range(images), key))
        first = next(batches)["image"]
        shapes = jax.eval_shape(features, state, first, key)
        fewest = min(math.prod(shapes[place].shape[:-1]) for place in self._quantizers)
        others = math.ceil(min(wanted, _MOST_LATENTS) / fewest) - 1
        parts = [first, *(batch["image"] for batch in itertools.islice(batches, others))]
        for number, place in enumerate(self._quantizers):
            # Codes change the features of the places behind them.
            latents = [features(state, part, jax.random.fold_in(key, number))[place] for part in parts]
            z = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in latents])[:_MOST_LATENTS]
            state = self._cluster(state, place, z, key)
        return state

    def _cluster(self, state: TrainState, place: str, z: Float[Array, "tokens dim"], key: Key[Array, ""]) -> TrainState:
        name, variables = name_at(place), state.trained(CLASSIFIER)
        alone, own = self.model.quantizer_at(place, variables)
        _, started = jax.jit(
            lambda own, z: alone.apply(own, z, method="kmeans_init", mutable=list(own), rngs={"quantizer": key})
        )(own, z)
        merged = {
            collection: tree | ({name: started[collection]} if collection in started else {})
            for collection, tree in variables.items()
        }
        return state.with_network(CLASSIFIER, merged)

    def _features(self, state: TrainState, images: Array, key: Key[Array, ""]) -> dict[str, Array]:
        """What enters the quantizers, with batch norms that use the batch; changes nothing."""
        return self._apply(state, state.params[CLASSIFIER], images, key)[0].latents

    def _apply(
        self, state: TrainState, params: PyTree, images: Array, key: Key[Array, ""]
    ) -> tuple[ClassifierOutput, dict[str, PyTree]]:
        quantizer_key, dropout_key = jax.random.split(key)
        return self.model.apply(
            {"params": params, **state.variables[CLASSIFIER]},
            images,
            train=True,
            mutable=list(state.variables[CLASSIFIER]),
            rngs={"quantizer": quantizer_key, "dropout": dropout_key},
        )

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step, behind those of the codes alone; see :meth:`Task.train_step`."""
        augment_key, mixup_key, network_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, batch["image"]))
        shares = jax.nn.one_hot(batch["label"], self.model.num_classes)
        if self.mixup is not None:
            images, shares = mixed(mixup_key, images, shares, self.mixup)
        if self.codebook_steps is not None:
            state = self._move_codes(state, self._features(state, images, network_key))

        def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, PyTree]]]:
            output, variables = self._apply(state, params, images, network_key)
            cross_entropy = self.loss(output.logits, shares)
            loss = cross_entropy + sum(of_place.loss for of_place in output.quantizers.values())
            metrics = {"loss": loss, "cross_entropy": cross_entropy, "accuracy": _accuracy(output.logits, shares)}
            return loss, (metrics | _of_places(output.quantizers), variables)

        params = state.params[CLASSIFIER]
        gradient, (metrics, variables) = jax.grad(loss_function, has_aux=True)(params)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        state = state.apply_gradient(CLASSIFIER, gradient, self.optimizer, variables)
        return state.finish_step(self.ema_decay), metrics

    def _move_codes(self, state: TrainState, latents: Mapping[str, Array]) -> TrainState:
        """Take the steps of the codes alone, towards features that are held constant."""
        params, opt_state = dict(state.params[CLASSIFIER]), dict(state.opt_state)
        for place in self._quantizers:
            name = name_at(place)
            alone, others = self.model.quantizer_at(place, state.variables[CLASSIFIER])

            def codebook_loss(own: PyTree, alone=alone, others=others, place=place) -> Float[Array, ""]:
                return alone.apply({"params": own, **others}, latents[place], method="codebook_loss")

            params[name], opt_state[f"codebook_{place}"] = alternating_steps(
                codebook_loss,
                params[name],
                self._codebook_optimizer,
                opt_state[f"codebook_{place}"],
                self.codebook_steps,
            )
        return state.replace(params=state.params | {CLASSIFIER: params}, opt_state=opt_state)

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the scores of the classes, and the code indices of each place; see :meth:`Task.evaluate`."""
        images = to_model_range(batch["image"])
        output = self.model.apply(state.evaluated(CLASSIFIER), images, batch["valid"], train=False)
        indices = {f"indices_{place}": of_place.indices for place, of_place in output.quantizers.items()}
        return {"logits": output.logits, **indices}

    @property
    def metrics(self) -> Sequence[Metric]:
        """Accuracy, and the use of the codes of each place."""
        usage = [AtPlace(CodeUsage(quantizer.codebook_sizes), place) for place, quantizer in self._quantizers.items()]
        return ImageCount(), Classification(), *usage

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """Return accuracy and code usage in one line."""
        usage = [f"codes in use at {place} {100 * metrics[f'usage_split_{place}']:.0f} %" for place in self._quantizers]
        top = f"held-out accuracy {100 * metrics['top1']:.2f} % (top 5: {100 * metrics['top5']:.2f} %)"
        return ", ".join([top, *usage])


def mixed(
    key: Key[Array, ""], images: Float[Array, "batch _ _ _"], shares: Float[Array, "batch classes"], alpha: float
) -> tuple[Float[Array, "batch _ _ _"], Float[Array, "batch classes"]]:
    r"""Mix each image and its label with those of another image of the batch.

    .. math:: x_i' = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    Args:
      key: Key of the share and of the permutation.
      images: Images.
      shares: Share of each class in an image.
      alpha: Parameter of the distribution; small ones mix little.

    Returns:
      Images and shares of the same shapes.

    Example:
      >>> images, shares = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))]), jnp.eye(2)
      >>> images, shares = mixed(jax.random.key(0), images, shares, alpha=1.0)
      >>> bool(jnp.allclose(images[:, 0, 0, 0], shares[:, 1]))
      True

    Source: Zhang et al., 2018 (arXiv 1710.09412).
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    order = jax.random.permutation(order_key, len(images))
    return tuple(share * x + (1 - share) * x[order] for x in (images, shares))


def _accuracy(logits: Float[Array, "batch classes"], shares: Float[Array, "batch classes"]) -> Float[Array, ""]:
    """Share of images whose largest score is that of their first class."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(shares, axis=-1), dtype=jnp.float32)


def _of_places(outputs: Mapping[str, QuantizerOutput]) -> Metrics:
    """The metrics of all quantizers: each with its place, if there are several, and means of those that all have."""
    if len(outputs) == 0:
        return {}
    names = set.intersection(*(set(output.metrics) for output in outputs.values()))
    means = {name: sum(output.metrics[name] for output in outputs.values()) / len(outputs) for name in sorted(names)}
    if len(outputs) == 1:
        return means
    return means | {
        f"{name}_{place}": value for place, output in outputs.items() for name, value in output.metrics.items()
    }


def _learns_alone(quantizer: Any) -> bool:
    if not isinstance(quantizer, VectorQuantizer):
        return False
    codebook = get_codebook(quantizer.codebook)
    return codebook.is_learned and codebook.weight == 0
