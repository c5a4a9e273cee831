"""Training of a transformer that fills in masked tokens of an image."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.errors import UserError
from vqjax.models.sampling import MASK_SCHEDULES
from vqjax.models.transformer import MaskedTransformer
from vqjax.quantizers.validation import is_fraction, require, require_choice
from vqjax.tasks.second_stage import TRANSFORMER, SecondStageTask, TokenLikelihood, bits
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics

_EVALUATED = {"all": 1.0, "half": 0.5, "tenth": 0.1}
_SEED = 0


@dataclasses.dataclass(frozen=True)
class MaskedTokensTask(SecondStageTask):
    r"""Task that trains a transformer with the cross-entropy of masked tokens by those that are known.

    Of an image, :math:`\lceil N\, \gamma(r) \rceil` of the :math:`N` tokens are masked, with :math:`r` uniform in
    [0, 1); the loss is the mean over them, then over images.

    The other attributes are those of :class:`vqjax.tasks.second_stage.SecondStageTask`.

    Attributes:
      schedule: A key of :data:`vqjax.models.sampling.MASK_SCHEDULES`, :math:`\gamma`.
      label_smoothing: Share of a token that is spread over all codes.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> model = MaskedTransformer(num_codes=16, grid=(2, 2), num_classes=3, dim=16, depth=1, heads=2)
      >>> task = MaskedTokensTask(model, optax.adam(1e-3))
      >>> batch = {"tokens": jnp.zeros((4, 2, 2), jnp.int32), "label": jnp.array([0, 1, 2, 0])}
      >>> state = task.init(jax.random.key(0), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
      >>> bool(metrics["loss"] > 0)
      True

    Source: Chang et al., 2022 (arXiv 2202.04200).
    """

    schedule: str = "cosine"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, MaskedTransformer):
            name = type(self.model).__name__
            raise UserError(f"The task 'masked_tokens' needs a MaskedTransformer, got {name}.")
        require_choice("schedule", self.schedule, MASK_SCHEDULES)
        require(is_fraction(self.label_smoothing), "label_smoothing", self.label_smoothing, "a number in [0, 1)")

    def initial(
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, tokens, jnp.ones_like(tokens, bool), classes)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        share_key, place_key, dropout_key = jax.random.split(key, 3)
        share = MASK_SCHEDULES[self.schedule](jax.random.uniform(share_key, tokens.shape[:1]))
        masked = random_masks(place_key, share, tokens.shape[1])
        logits = self.model.apply(
            {"params": params}, tokens, masked, classes, train=True, rngs={"dropout": dropout_key}
        )
        shares = optax.smooth_labels(jax.nn.one_hot(tokens, self.model.num_codes), self.label_smoothing)
        loss = jnp.mean(_mean_where(optax.softmax_cross_entropy(logits, shares), masked))
        right = jnp.argmax(logits, axis=-1) == tokens
        return loss, {
            "bits_per_token": jnp.mean(_mean_where(bits(logits, tokens), masked)),
            "accuracy": jnp.mean(_mean_where(right.astype(jnp.float32), masked)),
        }

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the information of masked tokens of each image; see :meth:`Task.evaluate`."""
        tokens, variables = self.tokens_of(batch), state.evaluated(TRANSFORMER)
        # An image has the same masks in batches of any size.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(_SEED), batch["index"])
        outputs = {}
        for name, share in _EVALUATED.items():
            draw = jax.vmap(lambda key, share=share: random_masks(key, jnp.full(1, share), tokens.shape[1])[0])
            masked = draw(keys)
            logits = self.model.apply(variables, tokens, masked, self.classes_of(batch), train=False)
            outputs[f"bits_per_token_{name}"] = _mean_where(bits(logits, tokens), masked)
        return outputs

    @property
    def likelihood(self) -> TokenLikelihood:
        how = "negative logarithm to base 2 of the probability of a masked token; masked at random: "
        described = {f"bits_per_token_{name}": f"{how}{share:.0%}" for name, share in _EVALUATED.items()}
        return TokenLikelihood(tuple(described.items()))


def random_masks(key: Key[Array, ""], share: Float[Array, " batch"], positions: int) -> Bool[Array, "batch positions"]:
    """Draw masks over a share of the tokens of each image, at least one.

    Args:
      key: Random key.
      share: Share of tokens, in [0, 1].
      positions: Number of tokens.

    Example:
      >>> jnp.sum(random_masks(jax.random.key(0), jnp.array([0.0, 0.5, 1.0]), 8), axis=1).tolist()
      [1, 4, 8]
    """
    number = jnp.clip(jnp.ceil(share * positions), 1, positions)
    place = jnp.argsort(jax.random.uniform(key, (len(share), positions)), axis=1)
    return jnp.argsort(place, axis=1) < number[:, None]


def _mean_where(
    values: Float[Array, "batch positions"], masked: Bool[Array, "batch positions"]
) -> Float[Array, " batch"]:
    return jnp.sum(jnp.where(masked, values, 0.0), axis=1) / jnp.sum(masked, axis=1)
