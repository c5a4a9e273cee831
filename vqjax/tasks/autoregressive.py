"""Training of a transformer that gives the tokens of an image one after another."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.errors import UserError
from vqjax.models.transformer import CausalTransformer
from vqjax.tasks.second_stage import TRANSFORMER, SecondStageTask, TokenLikelihood, bits
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics

_DESCRIBED = (
    ("bits_per_token", "negative logarithm to base 2 of the probability of a token, by class and the tokens before it"),
    ("bits_per_image", "their sum over the tokens of an image"),
)


@dataclasses.dataclass(frozen=True)
class AutoregressiveTask(SecondStageTask):
    r"""Task that trains a causal transformer with the cross-entropy of each token by those before it.

    The attributes are those of :class:`vqjax.tasks.second_stage.SecondStageTask`.

    Example:
      >>> import jax, optax
      >>> model = CausalTransformer(num_codes=16, grid=(2, 2), num_classes=3, dim=16, depth=1, heads=2)
      >>> task = AutoregressiveTask(model, optax.adam(1e-3))
      >>> batch = {"tokens": jnp.zeros((4, 2, 2), jnp.int32), "label": jnp.array([0, 1, 2, 0])}
      >>> state = task.init(jax.random.key(0), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
      >>> print(metrics["bits_per_token"].round(3))
      4.0

    Source: Sun et al., 2024 (arXiv 2406.06525).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, CausalTransformer):
            name = type(self.model).__name__
            raise UserError(f"The task 'autoregressive' needs a CausalTransformer, got {name}.")

    def initial(
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, tokens, classes)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = self.model.apply({"params": params}, tokens, classes, train=True, rngs={"dropout": key})
        of_tokens = jnp.mean(bits(logits, tokens))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == tokens, dtype=jnp.float32)
        return of_tokens * jnp.log(2.0), {"bits_per_token": of_tokens, "accuracy": accuracy}

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the information of the tokens of each image; see :meth:`Task.evaluate`."""
        tokens = self.tokens_of(batch)
        logits = self.model.apply(state.evaluated(TRANSFORMER), tokens, self.classes_of(batch), train=False)
        of_image = jnp.sum(bits(logits, tokens), axis=1)
        return {"bits_per_token": of_image / tokens.shape[1], "bits_per_image": of_image}

    @property
    def likelihood(self) -> TokenLikelihood:
        return TokenLikelihood(_DESCRIBED)
