"""Training of a transformer that gives the tokens of an image one after another."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.errors import UserError
from vqjax.functional.numbers import Number, is_zero
from vqjax.models.sampling import GuidanceSchedule, guidance_at, guided, sample_causal, with_none
from vqjax.models.transformer import Cache, CausalTransformer
from vqjax.tasks.second_stage import TRANSFORMER, SecondStageTask, TokenLikelihood, cross_entropy, image_bits
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
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions *levels"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, tokens, classes)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions *levels"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = self.model.apply({"params": params}, tokens, classes, train=True, rngs={"dropout": key})
        return cross_entropy(logits, tokens)

    def sample(
        self,
        networks: Mapping[str, PyTree],
        key: Key[Array, ""],
        classes: Int[Array, " batch"],
        *,
        temperature: Number = 1.0,
        top_k: int | None = None,
        top_p: Number | None = None,
        guidance: Number = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
    ) -> Int[Array, "batch positions *levels"]:
        """Draw the tokens of images one after another; see :func:`vqjax.models.sampling.sample_causal`.

        Args:
          networks: What :meth:`networks` returns.
          key: Random key.
          classes: Class of each image; ``num_classes`` for none.
          temperature: See :func:`vqjax.models.sampling.restricted`.
          top_k: See there.
          top_p: See there.
          guidance: Scale of :func:`vqjax.models.sampling.guided`; 1 for none.
          guidance_schedule: Whether the scale is the same for all tokens, or rises from 1 to twice its excess.
        """
        model, positions = self.model, self.model.positions
        is_guided = not is_zero(guidance - 1)
        seen = with_none(classes, model.num_classes) if is_guided else classes

        def step(
            previous: Int[Array, " batch"], position: Int[Array, ""], cache: Cache, level: int = 0
        ) -> tuple[Float[Array, "batch codes"], Cache]:
            if is_guided:
                previous = jnp.tile(previous, 2)
            logits, cache = model.apply(networks[TRANSFORMER], previous, seen, position, cache, level, method="step")
            if is_guided:
                logits = guided(*jnp.split(logits, 2), guidance_at(position / positions, guidance, guidance_schedule))  # pyright: ignore[reportCallIssue]
            return logits, cache

        size = {"batch": len(classes), "positions": positions, "levels": model.levels}
        restriction = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return sample_causal(step, model.start_cache(len(seen)), key, **size, **restriction)

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the information of the tokens of each image; see :meth:`Task.evaluate`."""
        tokens = self.tokens_of(batch)
        logits = self.model.apply(state.evaluated(TRANSFORMER), tokens, self.classes_of(batch), train=False)
        return image_bits(logits, tokens)

    @property
    def likelihood(self) -> TokenLikelihood:
        return TokenLikelihood(_DESCRIBED)
