"""Base class of tasks that train a transformer over tokens."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from vqjax.data import Batch, to_uint8
from vqjax.errors import UserError
from vqjax.evaluation import ImageCount, Metric
from vqjax.evaluation.metric import ImageMean, Outputs
from vqjax.functional.mixed_radix import from_digits, to_digits
from vqjax.functional.numbers import is_number
from vqjax.functional.tokens import TokenInfo
from vqjax.models.next_scale import NextScaleTransformer
from vqjax.models.tokenizer import Tokenizer
from vqjax.models.transformer import CausalTransformer, Logits, MaskedTransformer
from vqjax.quantizers.validation import is_fraction, require
from vqjax.reporting import sheet
from vqjax.tasks.state import TrainState, one_program
from vqjax.tasks.task import Metrics, Task

TRANSFORMER, TOKENIZER = "transformer", "tokenizer"
"""Keys of the networks in a training state."""

_SAMPLES = 80
_SEED = 0


@dataclasses.dataclass(frozen=True)
class SecondStageTask(Task):
    """Base class of tasks that train a transformer over the tokens of images.

    Batches have ``tokens``, int32 ``[batch, *grid]``, or ``[batch, *grid, levels]`` if the transformer has levels, and
    ``label`` if it has classes.

    Attributes:
      model: The transformer.
      optimizer: Optimizer of its parameters.
      class_dropout: Share of images whose class the transformer does not see in training, so that it also learns tokens
        without a class, for guidance.
      ema_decay: Decay of an exponential moving average of the parameters, which evaluations use; None for none.
      tokenizer: What made the tokens, for pictures of samples; None for none.
      tokens: What the tokens are; None if it is not known.

    Raises:
      UserError: An argument is out of range, or the tokenizer is not that of the tokens.
    """

    model: CausalTransformer | MaskedTransformer | NextScaleTransformer
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    tokens: TokenInfo | None = None
    class_dropout: float = 0.1
    ema_decay: float | None = None
    tokenizer: Tokenizer | None = None

    network: ClassVar = TRANSFORMER
    reconstructs: ClassVar = False
    mutable_fields: ClassVar = frozenset(
        {"task.tokenizer", "task.tokenizer.name", "task.tokenizer.workdir", "task.tokenizer.step"}
    )

    def __post_init__(self) -> None:
        require(is_fraction(self.class_dropout), "class_dropout", self.class_dropout, "a number in [0, 1)")
        in_range = self.ema_decay is None or is_number(self.ema_decay, lambda decay: 0 < decay < 1)
        require(in_range, "ema_decay", self.ema_decay, "above 0 and below 1, or None")
        if self.tokenizer is not None and self.tokens is not None:
            check_tokenizer(self.tokenizer, self.tokens)

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers of codes, tokens and classes, for the report's header."""
        model = self.model
        return {"num_codes": model.num_codes, "tokens_per_image": model.positions, "num_classes": model.num_classes}

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        if self.model.num_classes and "label" not in batch:
            raise UserError(f"batches must have `label` for num_classes={self.model.num_classes}, got {sorted(batch)}.")
        frozen = {} if self.tokenizer is None else {TOKENIZER: self.tokenizer.variables}
        return self._initial_state(key, batch).replace(frozen=frozen)

    @one_program
    def _initial_state(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        variables = self.initial(key, self.tokens_of(batch), self.classes_of(batch))
        params = {TRANSFORMER: variables["params"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            variables={TRANSFORMER: {}},
            opt_state={TRANSFORMER: self.optimizer.init(params[TRANSFORMER])},
            ema_params=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    @abc.abstractmethod
    def initial(
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions *levels"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        """Return the variables of a new transformer."""

    @abc.abstractmethod
    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions *levels"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss of a batch, and what is logged besides."""

    @abc.abstractmethod
    def sample(
        self, networks: Mapping[str, PyTree], key: Key[Array, ""], classes: Int[Array, " batch"], **options: Any
    ) -> Int[Array, "batch positions *levels"]:
        """Draw the tokens of images.

        Args:
          networks: What :meth:`networks` returns.
          key: Random key.
          classes: Class of each image; ``num_classes`` for none.
          **options: How they are drawn.
        """

    def generate(self, state: TrainState) -> dict[str, np.ndarray]:
        """Return ``samples`` of all classes in turn, if there is a tokenizer; see :meth:`Task.generate`."""
        if self.tokenizer is None:
            return {}
        return {"samples": np.asarray(self._draw(self.networks(state)))}

    def networks(self, state: TrainState) -> dict[str, PyTree]:
        """Return the variables of transformer and tokenizer, by name.

        Args:
          state: State as in :meth:`evaluate`.
        """
        return {TRANSFORMER: state.evaluated(TRANSFORMER), **state.frozen}

    @functools.cached_property
    def _draw(self) -> Callable[[dict[str, PyTree]], UInt8[Array, "images height width channels"]]:
        classes = jnp.arange(_SAMPLES) % max(self.model.num_classes, 1)

        @jax.jit
        def draw(networks: dict[str, PyTree]) -> UInt8[Array, "images height width channels"]:
            tokens = self.sample(networks, jax.random.key(_SEED), classes)
            return self.decoded(networks, self.grids(tokens))

        return draw

    def grids(self, tokens: Int[Array, "batch positions *levels"]) -> Int[Array, " batch *shape"]:
        """Return tokens in the shape that data sets have; the inverse of :meth:`tokens_of`.

        Args:
          tokens: Tokens, row by row, with levels if the transformer has them.
        """
        if self._has_digits:
            tokens = from_digits(tokens, self.model.num_codes)
        shape = (*self.model.grid, *tokens.shape[2:]) if self.tokens is None else self.tokens.shape
        return tokens.reshape(len(tokens), *shape)

    @property
    def _has_digits(self) -> bool:
        """Whether the levels of the transformer are digits of a code."""
        return self.model.levels is not None and self.tokens is not None and len(self.tokens.num_codes) == 1

    def decoded(
        self, networks: Mapping[str, PyTree], grids: Int[Array, " batch *shape"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Return the images of tokens.

        Args:
          networks: What :meth:`networks` returns.
          grids: Tokens in the shape that data sets have.
        """
        return to_uint8(self.tokenizer.model.apply(networks[TOKENIZER], grids, method="decode"))

    def pictures(self, collected: Mapping[str, np.ndarray]) -> dict[str, UInt8[np.ndarray, "height width channels"]]:
        """Return a sheet of the samples; see :meth:`Task.pictures`."""
        if "samples" not in collected:
            return {}
        columns = self.model.num_classes if 4 <= self.model.num_classes <= 16 else 8
        return {"samples": sheet(collected["samples"], columns)}

    def tokens_of(self, batch: Batch) -> Int[Array, "batch positions *levels"]:
        """Return the tokens of a batch, row by row."""
        tokens = jnp.asarray(batch["tokens"], jnp.int32)
        if self._has_digits:
            tokens = to_digits(tokens, self.model.num_codes)
        return tokens.reshape(
            len(tokens), self.model.positions, *(() if self.model.levels is None else (self.model.levels,))
        )

    def classes_of(self, batch: Batch) -> Int[Array, " batch"] | None:
        """Return the classes of a batch; None for a transformer without classes."""
        return jnp.asarray(batch["label"]) if self.model.num_classes else None

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step; see :meth:`Task.train_step`."""
        class_key, loss_key = jax.random.split(key)
        tokens, classes = self.tokens_of(batch), self.classes_of(batch)
        if classes is not None:
            unseen = jax.random.bernoulli(class_key, self.class_dropout, classes.shape)
            classes = jnp.where(unseen, self.model.num_classes, classes)
        gradient, metrics = jax.grad(self._loss_and_metrics, has_aux=True)(
            state.params[TRANSFORMER], tokens, classes, loss_key
        )
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        state = state.apply_gradient(TRANSFORMER, gradient, self.optimizer, {})
        return state.finish_step(self.ema_decay), metrics

    def _loss_and_metrics(self, params: PyTree, *inputs: Any) -> tuple[Float[Array, ""], Metrics]:
        loss, metrics = self.loss(params, *inputs)
        return loss, {"loss": loss, **metrics}

    @property
    def metrics(self) -> Sequence[Metric]:
        """Number of images, and what the outputs of ``evaluate`` say of the likelihood of their tokens."""
        return ImageCount(), self.likelihood

    @property
    @abc.abstractmethod
    def likelihood(self) -> "TokenLikelihood":
        """The metric of the likelihood."""


def check_tokenizer(tokenizer: Tokenizer, tokens: TokenInfo) -> None:
    """Refuse a tokenizer that has not made the tokens.

    Args:
      tokenizer: The tokenizer.
      tokens: What the tokens are.

    Raises:
      UserError: Its checksum is not that which was noted with the tokens.
    """
    noted = (tokens.tokenizer or {}).get("checksum")
    if noted is not None and noted != (checksum := tokenizer.checksum):
        raise UserError(
            f"tokenizer must be the one that made the tokens, of checksum {noted[:12]} (from "
            f"{tokens.tokenizer['workdir']}), got one of {checksum[:12]}; pass that run, or write the tokens again."
        )


class TokenLikelihood(ImageMean):
    """Means over images of what the outputs of a second stage say of the likelihood of their tokens.

    Attributes:
      described: Names of outputs with a value per image, each with how it is measured.
    """

    described: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False)

    @property
    def protocol(self) -> dict[str, str]:
        return dict(self.described)

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        return {name: outputs[name] for name, _ in self.described}


def bits(logits: Logits, tokens: Int[Array, "batch positions *levels"]) -> Float[Array, "batch positions"]:
    """Return the information of each token in bits, all of its levels together.

    Args:
      logits: Logits of the codes, or a tuple of those of each level.
      tokens: The tokens.

    Example:
      >>> bits(jnp.zeros((1, 2, 8)), jnp.array([[0, 7]])).tolist()
      [[3.0, 3.0]]
      >>> bits((jnp.zeros((1, 2, 8)), jnp.zeros((1, 2, 4))), jnp.array([[[0, 0], [7, 3]]])).tolist()
      [[5.0, 5.0]]
    """
    log_p = sum(
        jnp.take_along_axis(jax.nn.log_softmax(of_level), codes[..., None], axis=-1)[..., 0]
        for of_level, codes in by_level(logits, tokens)
    )
    return -log_p / jnp.log(2.0)


def accuracy(logits: Logits, tokens: Int[Array, "batch positions *levels"]) -> Float[Array, "batch positions"]:
    """Return the share of the levels of each token whose code is the likeliest.

    Args:
      logits: Logits of the codes, or a tuple of those of each level.
      tokens: The tokens.

    Example:
      >>> accuracy(jnp.array([[[0.0, 1.0], [0.0, 1.0]]]), jnp.array([[0, 1]])).tolist()
      [[0.0, 1.0]]
    """
    right = [jnp.argmax(of_level, axis=-1) == codes for of_level, codes in by_level(logits, tokens)]
    return jnp.mean(jnp.stack(right), axis=0, dtype=jnp.float32)


def cross_entropy(
    logits: Logits, tokens: Int[Array, "batch positions *levels"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the mean cross-entropy of all tokens in nats, and what is logged of it.

    Args:
      logits: Logits of the codes, or a tuple of those of each level.
      tokens: The tokens.

    Example:
      >>> loss, metrics = cross_entropy(jnp.zeros((1, 2, 8)), jnp.array([[0, 7]]))
      >>> float(metrics["bits_per_token"]), float(metrics["accuracy"])
      (3.0, 0.5)
    """
    of_tokens = jnp.mean(bits(logits, tokens))
    metrics = {"bits_per_token": of_tokens, "accuracy": jnp.mean(accuracy(logits, tokens))}
    return of_tokens * jnp.log(2.0), metrics


def image_bits(logits: Logits, tokens: Int[Array, "batch positions *levels"]) -> dict[str, Float[Array, " batch"]]:
    """Return the information of each image in bits: of a token on average, and of all.

    Args:
      logits: Logits of the codes, or a tuple of those of each level.
      tokens: The tokens.

    Example:
      >>> found = image_bits(jnp.zeros((1, 2, 8)), jnp.array([[0, 7]]))
      >>> found["bits_per_token"].tolist(), found["bits_per_image"].tolist()
      ([3.0], [6.0])
    """
    of_image = jnp.sum(bits(logits, tokens), axis=1)
    return {"bits_per_token": of_image / tokens.shape[1], "bits_per_image": of_image}


def by_level(
    logits: Logits, tokens: Int[Array, "batch positions *levels"]
) -> Iterator[tuple[Float[Array, "batch positions _codes"], Int[Array, "batch positions"]]]:
    """Return logits and codes of each level; of the only one for tokens without levels.

    Args:
      logits: Logits of the codes, or a tuple of those of each level.
      tokens: The tokens.

    Example:
      >>> [codes.tolist() for _, codes in by_level((jnp.zeros((1, 2, 8)),) * 2, jnp.array([[[0, 1], [7, 3]]]))]
      [[[0, 7]], [[1, 3]]]
    """
    if not isinstance(logits, tuple):
        logits, tokens = (logits,), tokens[..., None]
    return zip(logits, jnp.moveaxis(tokens, -1, 0), strict=True)
