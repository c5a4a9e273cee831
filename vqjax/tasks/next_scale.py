"""Training of a transformer that gives the tokens of an image scale by scale."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from vqjax.data import Batch
from vqjax.errors import UserError
from vqjax.functional.numbers import Number
from vqjax.models.next_scale import NextScaleTransformer, guided_step, sample_scales, scale_inputs
from vqjax.models.tokenizer import quantizer_variables
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.validation import require
from vqjax.tasks.second_stage import TOKENIZER, TRANSFORMER, SecondStageTask, TokenLikelihood, cross_entropy, image_bits
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics

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

    The tokenizer, whose quantizer makes the inputs of a scale from those of coarser ones, is always needed.

    Raises:
      UserError: An argument is out of range, there is no tokenizer, or its quantizer has other codes or scales than the
        transformer.

    Example:
      >>> import jax, optax
      >>> from vqjax import Tokenizer, VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> vq = MultiScaleVQ(VectorQuantizer(num_codes=16), scales=(1, 2))
      >>> autoencoder = VQVAE(SonnetEncoder(width=8, latent_dim=3), vq, SonnetDecoder(width=8))
      >>> variables = jax.jit(autoencoder.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> tokenizer = Tokenizer(autoencoder, variables, config={}, step=0)
      >>> sizes = {"num_codes": 16, "scales": (1, 2), "code_dim": 3, "num_classes": 3}
      >>> model = NextScaleTransformer(**sizes, dim=16, depth=1, heads=2)
      >>> task = NextScaleTask(model, optax.adam(1e-3), tokenizer=tokenizer)
      >>> batch = {"tokens": jnp.zeros((4, 5), jnp.int32), "label": jnp.array([0, 1, 2, 0])}
      >>> state = task.init(jax.random.key(1), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(2))
      >>> print(metrics["bits_per_token"].round(3))
      4.0

    Source: Tian et al., 2024 (arXiv 2404.02905).
    """

    model: NextScaleTransformer

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, NextScaleTransformer):
            name = type(self.model).__name__
            raise UserError(f"The task 'next_scale' needs a NextScaleTransformer, got {name}.")
        if self.tokenizer is None or not isinstance(self.quantizer, MultiScaleVQ):
            found = "none" if self.tokenizer is None else f"one with {type(self.quantizer).__name__}"
            raise UserError(f"tokenizer must be one with MultiScaleVQ for the task 'next_scale', got {found}.")
        for name in ("num_codes", "shapes"):
            of_model, of_quantizer = getattr(self.model, name), getattr(self.quantizer, name)
            expected = f"{of_quantizer}, as its quantizer has"
            require(of_model == of_quantizer, f"`{name}` of the transformer", of_model, expected, "make both alike")

    @property
    def quantizer(self) -> nn.Module:
        """The quantizer of the tokens."""
        return self.tokenizer.model.quantizer

    def initial(
        self, key: Key[Array, ""], tokens: Int[Array, "batch positions"], classes: Int[Array, " batch"] | None
    ) -> PyTree:
        return self.model.init(key, self._inputs(self.tokenizer.variables, tokens), classes)

    def tokens_of(self, batch: Batch) -> Int[Array, "batch positions"]:
        """Return the tokens of a batch, coarse to fine."""
        tokens = jnp.asarray(batch["tokens"], jnp.int32).reshape(len(batch["tokens"]), -1)
        shape, positions = list(tokens.shape), self.model.positions
        expected = f"[batch, {positions}], those of the scales {self.model.scales}"
        require(shape[1] == positions, "`tokens`", shape, expected, "pass what `encode` of the quantizer returns")
        return tokens

    def grids(self, tokens: Int[Array, "batch positions"]) -> Int[Array, "batch positions"]:
        """Return tokens in the shape that data sets have: as they are."""
        return tokens

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step; see :meth:`Task.train_step`."""
        # Its variables in the state, so that the compiled program takes them as an argument, not as constants.
        tokenizer = dataclasses.replace(self.tokenizer, variables=state.frozen[TOKENIZER])
        of_state = dataclasses.replace(self, tokenizer=tokenizer, tokens=None)
        return super(NextScaleTask, of_state).train_step(state, batch, key)

    def loss(
        self,
        params: PyTree,
        tokens: Int[Array, "batch positions"],
        classes: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        inputs = self._inputs(self.tokenizer.variables, tokens)
        logits = self.model.apply({"params": params}, inputs, classes, train=True, rngs={"dropout": key})
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
    ) -> Int[Array, "batch positions"]:
        """Draw the tokens of images scale by scale; see :func:`vqjax.models.next_scale.sample_scales`.

        Args:
          networks: What :meth:`networks` returns.
          key: Random key.
          classes: Class of each image; ``num_classes`` for none.
          temperature: See :func:`vqjax.models.sampling.restricted`.
          top_k: See there.
          top_p: See there.
          guidance: Guidance at the last scale, see :func:`vqjax.models.next_scale.scale_guidance`.
        """
        of_quantizer = quantizer_variables(networks[TOKENIZER])
        step = guided_step(self.model, networks[TRANSFORMER], self.quantizer, of_quantizer, classes, guidance)
        restriction = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return sample_scales(step, key, batch=len(classes), num_scales=len(self.model.scales), **restriction)

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the information of the tokens of each image; see :meth:`Task.evaluate`."""
        tokens = self.tokens_of(batch)
        inputs = self._inputs(state.frozen[TOKENIZER], tokens)
        logits = self.model.apply(state.evaluated(TRANSFORMER), inputs, self.classes_of(batch), train=False)
        return image_bits(logits, tokens)

    @property
    def likelihood(self) -> TokenLikelihood:
        return TokenLikelihood(_DESCRIBED)

    def _inputs(
        self, of_tokenizer: PyTree, tokens: Int[Array, "batch positions"]
    ) -> Float[Array, "batch inputs code_dim"]:
        return scale_inputs(self.quantizer, quantizer_variables(of_tokenizer), tokens)
