"""Training of a transformer that gives the tokens of an image scale by scale."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.models.next_scale import NextScaleTransformer, scale_inputs
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.validation import require
from vqjax.tasks.second_stage import TRANSFORMER, SecondStageTask, TokenLikelihood, bits
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics

QUANTIZER = "quantizer"
"""Key of the frozen quantizer in a training state."""

_DESCRIBED = (
    ("bits_per_token", "negative logarithm to base 2 of the probability of a token, by class and coarser scales"),
    ("bits_per_image", "their sum over the tokens of all scales of an image"),
)


@dataclasses.dataclass(frozen=True)
class NextScaleTask(SecondStageTask):
    r"""Task that trains a transformer with the cross-entropy of the tokens of each scale by those of coarser ones.

    Batches have ``tokens``, int32 ``[batch, tokens]``, as the quantizer encodes them. The loss is the mean over the
    tokens of all scales, so that a scale counts as many times as it has tokens.

    The other attributes are those of :class:`vqjax.tasks.second_stage.SecondStageTask`.

    Attributes:
      quantizer: The quantizer of the tokens, which makes the inputs of a scale from those of coarser ones.
      quantizer_variables: Its variables; ``frozen`` in the state.

    Raises:
      UserError: An argument is out of range, or the quantizer has other codes or scales than the transformer.

    Example:
      >>> import jax, optax
      >>> from vqjax import VectorQuantizer
      >>> vq = MultiScaleVQ(VectorQuantizer(num_codes=16), scales=(1, 2))
      >>> variables = jax.jit(vq.init)(jax.random.key(0), jnp.ones((1, 2, 2, 3)))
      >>> sizes = {"num_codes": 16, "scales": (1, 2), "code_dim": 3, "num_classes": 3}
      >>> model = NextScaleTransformer(**sizes, dim=16, depth=1, heads=2)
      >>> task = NextScaleTask(model, optax.adam(1e-3), vq, variables)
      >>> batch = {"tokens": jnp.zeros((4, 5), jnp.int32), "label": jnp.array([0, 1, 2, 0])}
      >>> state = task.init(jax.random.key(1), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(2))
      >>> print(metrics["bits_per_token"].round(3))
      4.0

    Source: Tian et al., 2024 (arXiv 2404.02905).
    """

    model: NextScaleTransformer
    quantizer: MultiScaleVQ
    quantizer_variables: PyTree[Any] = dataclasses.field(repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_codes", "shapes"):
            of_model, of_quantizer = getattr(self.model, name), getattr(self.quantizer, name)
            expected = f"{of_quantizer}, as its quantizer has"
            require(of_model == of_quantizer, f"`{name}` of the transformer", of_model, expected, "make both alike")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        return super().init(key, batch).replace(frozen={QUANTIZER: self.quantizer_variables})

    def initial(
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, self._inputs(self.quantizer_variables, tokens), classes)

    def tokens_of(self, batch: Batch) -> Int[Array, "batch positions"]:
        """Return the tokens of a batch, coarse to fine."""
        tokens = super().tokens_of(batch)
        shape, positions = list(tokens.shape), self.model.positions
        expected = f"[batch, {positions}], those of the scales {self.model.scales}"
        require(shape[1] == positions, "`tokens`", shape, expected, "pass what `encode` of the quantizer returns")
        return tokens

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step; see :meth:`Task.train_step`."""
        # Those of the state, so that the compiled program takes them as an argument, not as constants.
        of_state = dataclasses.replace(self, quantizer_variables=state.frozen[QUANTIZER])
        return super(NextScaleTask, of_state).train_step(state, batch, key)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        inputs = self._inputs(self.quantizer_variables, tokens)
        logits = self.model.apply({"params": params}, inputs, classes, train=True, rngs={"dropout": key})
        of_tokens = jnp.mean(bits(logits, tokens))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == tokens, dtype=jnp.float32)
        return of_tokens * jnp.log(2.0), {"bits_per_token": of_tokens, "accuracy": accuracy}

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the information of the tokens of each image; see :meth:`Task.evaluate`."""
        tokens = self.tokens_of(batch)
        inputs = self._inputs(state.frozen[QUANTIZER], tokens)
        logits = self.model.apply(state.evaluated(TRANSFORMER), inputs, self.classes_of(batch), train=False)
        of_image = jnp.sum(bits(logits, tokens), axis=1)
        return {"bits_per_token": of_image / tokens.shape[1], "bits_per_image": of_image}

    @property
    def likelihood(self) -> TokenLikelihood:
        return TokenLikelihood(_DESCRIBED)

    def _inputs(
        self, quantizer_variables: PyTree[Any], tokens: Int[Array, "batch positions"]
    ) -> Float[Array, "batch inputs code_dim"]:
        return scale_inputs(self.quantizer, quantizer_variables, tokens)
