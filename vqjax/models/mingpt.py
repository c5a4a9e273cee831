"""The transformer of taming-transformers, a GPT with learned positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vqjax.errors import UserError
from vqjax.models.layers import LARGEST_DIM, check_dtype, dense
from vqjax.models.transformer import LARGEST_VOCABULARY
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import require, require_count

_EPSILON = 1e-5
_SMALL = nn.initializers.normal(0.02)


class MinGPT(nn.Module):
    """A transformer that gives each token a distribution, from those before it.

    What conditions the tokens, such as a class or a start token, stands in front of them as a token of the same
    vocabulary.

    Attributes:
      num_tokens: Size of the vocabulary.
      block_size: Largest number of tokens.
      dim: Features of a token.
      depth: Number of blocks.
      heads: Heads of the attention.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms and logits are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> model = MinGPT(num_tokens=16, block_size=8, dim=16, depth=1, heads=2)
      >>> logits, variables = model.init_with_output(jax.random.key(0), jnp.zeros((4, 6), jnp.int32))
      >>> logits.shape
      (4, 6, 16)

    Source: Esser et al., 2021 (arXiv 2012.09841).
    """

    num_tokens: int
    block_size: int = 512
    dim: int = 512
    depth: int = 12
    heads: int = 8
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        require_count("num_tokens", self.num_tokens, largest=LARGEST_VOCABULARY)
        require_count("block_size", self.block_size, largest=LARGEST_VOCABULARY)
        for name in ("dim", "depth", "heads"):
            require_count(name, getattr(self, name), largest=LARGEST_DIM)
        require(self.dim % self.heads == 0, "dim", self.dim, f"a multiple of heads={self.heads}")

    @automatic_axes
    @nn.compact
    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens vocabulary"]:
        """Return the logits of the token behind each.

        Args:
          tokens: Tokens in [0, num_tokens), at most ``block_size``.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.block_size:
            raise UserError(
                f"tokens must have shape [batch, tokens] with at most block_size={self.block_size} of them, got "
                f"{list(tokens.shape)}."
            )
        places = self.param("positions", nn.initializers.zeros, (self.block_size, self.dim), jnp.float32)
        table = nn.Embed(self.num_tokens, self.dim, embedding_init=_SMALL, name="token_table")
        x = table(tokens) + places[None, : tokens.shape[1]]
        for number in range(self.depth):
            x = _Block(self.heads, self.dtype, name=f"blocks_{number}")(x)
        return dense(self.num_tokens, use_bias=False, kernel_init=_SMALL, name="head")(_norm("norm")(x))


class _Block(nn.Module):
    """Causal attention and a two-layer network, each behind a norm and added to its input."""

    heads: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        def linear(features: int, name: str) -> nn.Dense:
            return dense(features, dtype=self.dtype, kernel_init=_SMALL, name=name)

        dim, y = x.shape[-1], _norm("attention_norm")(x)
        query, key, value = (
            linear(dim, name)(y).reshape(*x.shape[:2], self.heads, -1) for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape)
        x = x + linear(dim, "out")(attended)
        hidden = nn.gelu(linear(4 * dim, "mlp_1")(_norm("mlp_norm")(x)), approximate=False)
        return x + linear(dim, "mlp_2")(hidden)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(_EPSILON, use_fast_variance=False, dtype=jnp.float32, name=name)
