"""Training of a transformer that fills in masked tokens of an image."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.errors import UserError
from vqjax.functional.numbers import Number, is_zero
from vqjax.models.sampling import (
    MASK_SCHEDULES,
    GuidanceSchedule,
    Order,
    guidance_at,
    guided,
    sample_masked,
    with_none,
)
from vqjax.models.transformer import Logits, MaskedTransformer
from vqjax.quantizers.validation import is_fraction, require, require_choice
from vqjax.tasks.second_stage import TRANSFORMER, SecondStageTask, TokenLikelihood, accuracy, bits, by_level
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics

_EVALUATED = {"all": 1.0, "half": 0.5, "tenth": 0.1}
_SEED = 0


@dataclasses.dataclass(frozen=True)
class MaskedTokensTask(SecondStageTask):
    r"""Task that trains a transformer with the cross-entropy of masked tokens by those that are known.

    Of an image, :math:`\lceil N\, \gamma(r) \rceil` of the :math:`N` tokens are masked, with :math:`r` uniform in
    [0, 1); the loss is the mean over them, then over images. Levels of a token are masked together, and added.

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
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions *levels"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, tokens, jnp.ones(tokens.shape[:2], bool), classes)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions *levels"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        share_key, place_key, dropout_key = jax.random.split(key, 3)
        share = MASK_SCHEDULES[self.schedule](jax.random.uniform(share_key, tokens.shape[:1]))
        masked = random_masks(place_key, share, tokens.shape[1])
        logits = self.model.apply(
            {"params": params}, tokens, masked, classes, train=True, rngs={"dropout": dropout_key}
        )
        cross_entropy = sum(
            optax.softmax_cross_entropy(
                of_level, optax.smooth_labels(jax.nn.one_hot(codes, of_level.shape[-1]), self.label_smoothing)
            )
            for of_level, codes in by_level(logits, tokens)
        )
        return jnp.mean(_mean_where(cross_entropy, masked)), {
            "bits_per_token": jnp.mean(_mean_where(bits(logits, tokens), masked)),
            "accuracy": jnp.mean(_mean_where(accuracy(logits, tokens), masked)),
        }

    def sample(
        self,
        networks: Mapping[str, PyTree],
        key: Key[Array, ""],
        classes: Int[Array, " batch"],
        *,
        known: tuple[Int[Array, "batch positions *levels"], Bool[Array, "batch positions"]] | None = None,
        num_steps: int = 12,
        order: Order = "confidence",
        schedule: str | None = None,
        choice_temperature: Number = 4.5,
        temperature: Number = 1.0,
        top_k: int | None = None,
        top_p: Number | None = None,
        guidance: Number = 1.0,
        guidance_schedule: GuidanceSchedule = "linear",
    ) -> Int[Array, "batch positions *levels"]:
        """Draw the tokens of images, many at once; see :func:`vqjax.models.sampling.sample_masked`.

        Args:
          networks: What :meth:`networks` returns.
          key: Random key.
          classes: Class of each image; ``num_classes`` for none.
          known: Tokens of images, and which of them are drawn; None: everywhere.
          num_steps: Number of steps.
          order: Which tokens are kept first.
          schedule: A key of :data:`vqjax.models.sampling.MASK_SCHEDULES`; None: that of training.
          choice_temperature: See :func:`vqjax.models.sampling.sample_masked`.
          temperature: See :func:`vqjax.models.sampling.restricted`.
          top_k: See there.
          top_p: See there.
          guidance: Scale of :func:`vqjax.models.sampling.guided`; 1 for none.
          guidance_schedule: Whether the scale is the same in all steps, or rises from 1 to twice its excess.
        """
        model = self.model
        masked = jnp.ones((len(classes), model.positions), bool)
        tokens = jnp.zeros((*masked.shape, *(() if model.levels is None else (model.levels,))), jnp.int32)
        tokens, masked = known or (tokens, masked)
        is_guided = not is_zero(guidance - 1)

        def logits_of(
            tokens: Int[Array, "batch positions *levels"],
            masked: Bool[Array, "batch positions"],
            progress: Float[Array, ""],
        ) -> Logits:
            if not is_guided:
                return model.apply(networks[TRANSFORMER], tokens, masked, classes, train=False)
            twice = [jnp.concatenate([x, x]) for x in (tokens, masked)]
            logits = model.apply(networks[TRANSFORMER], *twice, with_none(classes, model.num_classes), train=False)
            scale = guidance_at(progress, guidance, guidance_schedule)
            return jax.tree.map(lambda of_level: guided(*jnp.split(of_level, 2), scale), logits)  # pyright: ignore[reportCallIssue]

        return sample_masked(
            logits_of,
            key,
            tokens,
            masked,
            num_steps=num_steps,
            schedule=schedule or self.schedule,
            order=order,
            grid=model.grid,
            choice_temperature=choice_temperature,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

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
