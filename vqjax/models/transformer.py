"""Transformers over the tokens of an image: one that is causal, and one that fills in what is masked."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import UserError
from vqjax.models.layers import LARGEST_DIM, check_dtype
from vqjax.quantizers.validation import check_flags, is_fraction, require, require_count

Tokens = Int[Array, "batch positions"]
Classes = Int[Array, " images"]
Logits = Float[Array, "batch positions codes"]
Vectors = Float[Array, "batch positions dim"]
Heads = Float[Array, "batch positions heads head_dim"]
Seen = Float[Array, "batch all_positions heads head_dim"]

LARGEST_VOCABULARY = 2**20
_RMS_EPSILON, _BERT_EPSILON = 1e-5, 1e-12
_ROTARY_BASE = 10_000.0
_SMALL = nn.initializers.normal(0.02)
_TRUNCATED = nn.initializers.truncated_normal(0.02)


class Cache(NamedTuple):
    """Keys and values of the positions that a causal transformer has seen, of all its blocks.

    Attributes:
      keys: Zero where nothing was seen yet.
      values: Likewise.
    """

    keys: Float[Array, "depth batch positions heads head_dim"]
    values: Float[Array, "depth batch positions heads head_dim"]


class _TokenTransformer(nn.Module):
    """Size and options that both transformers share; see :class:`CausalTransformer`."""

    num_codes: int
    grid: tuple[int, int]
    num_classes: int = 0
    dim: int = 384
    depth: int = 6
    heads: int = 6
    mlp_dim: int | None = None
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_dtype(self.dtype)
        require_count("num_codes", self.num_codes, largest=LARGEST_VOCABULARY)
        require_count("num_classes", self.num_classes, largest=LARGEST_VOCABULARY, smallest=0)
        for name in ("dim", "depth", "heads"):
            require_count(name, getattr(self, name), largest=LARGEST_DIM)
        if len(self.grid) != 2:
            raise UserError(f"grid must be rows and columns such as (16, 16), got {self.grid!r}.")
        for side in self.grid:
            require_count("grid", side, largest=LARGEST_DIM)
        require(is_fraction(self.dropout), "dropout", self.dropout, "a number in [0, 1)")
        require(self.dim % self.heads == 0, "dim", self.dim, f"a multiple of heads={self.heads}")
        if self.mlp_dim is not None:
            require_count("mlp_dim", self.mlp_dim, largest=LARGEST_DIM)

    @property
    def positions(self) -> int:
        """Number of tokens of an image."""
        return self.grid[0] * self.grid[1]

    def _check(self, tokens: Tokens, classes: Classes | None, train: bool | None) -> bool:
        if tokens.ndim != 2 or tokens.shape[1] != self.positions or not jnp.issubdtype(tokens.dtype, jnp.integer):
            rows, columns = self.grid
            raise UserError(
                f"tokens must be integers of shape [batch, {self.positions}], row by row of grid={rows} x {columns}, "
                f"got {tokens.dtype} of shape {list(tokens.shape)}."
            )
        if classes is not None and classes.shape != tokens.shape[:1]:
            raise UserError(f"classes must be one for each of {len(tokens)} images, got shape {list(classes.shape)}.")
        if train is None and not self.is_initializing():
            raise UserError(f"train must be True or False for {type(self).__name__}, got None; say which.")
        return bool(train)

    def _classes_of(self, tokens: Tokens, classes: Classes | None) -> Classes:
        """The given ones, or for all images the last, which stands for no class."""
        return jnp.full(tokens.shape[:1], self.num_classes) if classes is None else classes


class CausalTransformer(_TokenTransformer):
    r"""A transformer that gives each token of an image a distribution, from its class and the tokens before it.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid c, x_{<i})

    RMS norms, SwiGLU, and positions that rotate queries and keys, half of each head by rows and half by columns. The
    class stands in front of the tokens; as in LlamaGen its own query and key are zero, so that no token attends to it
    by what it is. The last layer starts at zero, that is with uniform distributions.

    Attributes:
      num_codes: Number of codes.
      grid: Rows and columns of the tokens.
      num_classes: Number of classes; 0 for none. Class number ``num_classes`` stands for no class.
      dim: Features of a token.
      depth: Number of blocks.
      heads: Heads of the attention; a head has a multiple of 4 features.
      mlp_dim: Hidden features of a block; None: eight thirds of ``dim``, rounded up to a multiple of 256.
      dropout: Rate of dropout behind tokens, attention and hidden features.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms and logits are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> model = CausalTransformer(num_codes=16, grid=(2, 3), num_classes=10, dim=16, depth=1, heads=2)
      >>> tokens, classes = jnp.zeros((4, 6), jnp.int32), jnp.arange(4)
      >>> logits, variables = model.init_with_output(jax.random.key(0), tokens, classes)
      >>> logits.shape
      (4, 6, 16)

    Source: Sun et al., 2024 (arXiv 2406.06525).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        head_dim = self.dim // self.heads
        require(head_dim % 4 == 0, "dim", self.dim, f"a multiple of 4 for each of heads={self.heads}")

    def setup(self) -> None:
        self.token_table = nn.Embed(self.num_codes, self.dim, embedding_init=_SMALL)
        self.class_table = nn.Embed(self.num_classes + 1, self.dim, embedding_init=_SMALL)
        hidden = self.mlp_dim or -(-int(8 * self.dim / 3) // 256) * 256
        block = nn.remat(_CausalBlock, static_argnums=(3,)) if self.remat else _CausalBlock
        self.blocks = [block(self.dim, self.heads, hidden, self.dropout, self.dtype) for _ in range(self.depth)]
        self.drop, self.norm = nn.Dropout(self.dropout), _rms_norm()
        self.head = nn.Dense(self.num_codes, use_bias=False, kernel_init=nn.initializers.zeros)

    def __call__(self, tokens: Tokens, classes: Classes | None = None, *, train: bool | None = None) -> Logits:
        """Return the logits of each token by the class and the tokens before it.

        Args:
          tokens: Codes in [0, num_codes), row by row.
          classes: Class of each image; ``num_classes``, and None, stand for no class.
          train: Whether there is dropout, by the stream ``dropout``.

        Raises:
          UserError: The tokens do not fit the grid, or ``train`` is not given.
        """
        train = self._check(tokens, classes, train)
        before = self.class_table(self._classes_of(tokens, classes))[:, None]
        x = self.drop(jnp.concatenate([before, self.token_table(tokens[:, :-1])], axis=1), deterministic=not train)
        table = jnp.asarray(rotary_table(self.grid, self.dim // self.heads))
        for block in self.blocks:
            x = block(x, table, train)
        return self.head(self.norm(x))

    def start_cache(self, batch: int) -> Cache:
        """Return the cache of images without tokens.

        Args:
          batch: Number of images.
        """
        shape = (self.depth, batch, self.positions, self.heads, self.dim // self.heads)
        dtype = jnp.dtype(self.dtype or jnp.float32)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def step(
        self, previous: Classes, classes: Classes | None, position: Int[Array, ""] | int, cache: Cache
    ) -> tuple[Float[Array, "batch codes"], Cache]:
        """Return the logits of the tokens at one position, and the cache with it; the same as those of a whole pass.

        Args:
          previous: The tokens at the position before; any at the first.
          classes: Class of each image, as in a whole pass.
          position: The position, from 0.
          cache: Cache of the positions before.
        """
        of_class = self.class_table(self._classes_of(previous[:, None], classes))
        x = jnp.where(position == 0, of_class, self.token_table(previous))[:, None]
        table = jnp.asarray(rotary_table(self.grid, self.dim // self.heads))
        table = jax.lax.dynamic_slice_in_dim(table, position, 1)
        keys, values = [], []
        for block, of_keys, of_values in zip(self.blocks, *cache, strict=True):
            x, of_keys, of_values = block.step(x, table, position, of_keys, of_values)
            keys.append(of_keys)
            values.append(of_values)
        return self.head(self.norm(x))[:, 0], Cache(jnp.stack(keys), jnp.stack(values))


class _CausalBlock(nn.Module):
    """Causal attention and SwiGLU, each behind an RMS norm and added to its input."""

    dim: int
    heads: int
    hidden: int
    dropout: float
    dtype: DTypeLike | None

    def setup(self) -> None:
        def linear(features: int) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=_SMALL)

        self.attention_norm, self.mlp_norm = _rms_norm(), _rms_norm()
        self.qkv, self.out = linear(3 * self.dim), linear(self.dim)
        self.gate, self.up, self.down = linear(self.hidden), linear(self.hidden), linear(self.dim)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Vectors, table: Float[Array, "positions pairs 2"], train: bool) -> Vectors:
        query, key, value = self._heads(x, table)
        return self._behind(x, jax.nn.dot_product_attention(query, key, value, is_causal=True), train)

    def step(
        self, x: Vectors, table: Float[Array, "1 pairs 2"], position: Int[Array, ""] | int, keys: Seen, values: Seen
    ) -> tuple[Vectors, Seen, Seen]:
        """One position, with the keys and values of those before, which it joins."""
        query, key, value = self._heads(x, table)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(seen, new.astype(seen.dtype), position, axis=1)
            for seen, new in ((keys, key), (values, value))
        )
        seen = (jnp.arange(keys.shape[1]) <= position)[None, None, None]
        attended = jax.nn.dot_product_attention(query, keys, values, mask=seen)
        return self._behind(x, attended, train=False), keys, values

    def _heads(self, x: Vectors, table: Float[Array, "positions pairs 2"]) -> tuple[Heads, Heads, Heads]:
        parts = jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        query, key, value = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        return rotate(query, table), rotate(key, table), value

    def _behind(self, x: Vectors, attended: Heads, train: bool) -> Vectors:
        x = x + self.drop(self.out(attended.reshape(*x.shape)), deterministic=not train)
        y = self.mlp_norm(x)
        y = self.down(nn.silu(self.gate(y)) * self.up(y))
        return x + self.drop(y, deterministic=not train)


def rotary_table(grid: tuple[int, int], head_dim: int) -> Float[np.ndarray, "positions pairs 2"]:
    r"""Return cosines and sines of the angles by which pairs of features rotate at each position.

    The first position is that of the class, where both are zero. Position :math:`(r, c)` of the grid follows with the
    angles :math:`r\,\omega_k`, then :math:`c\,\omega_k`, and :math:`\omega_k = 10000^{-4k/d}`; the last one of the grid
    is left out, as no token comes behind it.

    Args:
      grid: Rows and columns.
      head_dim: Features of a head, :math:`d`; a multiple of 4.

    Example:
      >>> print(rotary_table((2, 2), 4)[..., 0].round(2))
      [[0.   0.  ]
       [1.   1.  ]
       [1.   0.54]
       [0.54 1.  ]]
    """
    frequencies = _ROTARY_BASE ** (-4 * np.arange(head_dim // 4) / head_dim)
    rows, columns = (places.reshape(-1, 1) * frequencies for places in np.indices(grid))
    angles = np.concatenate([rows, columns], axis=1)[:-1]
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.concatenate([np.zeros_like(pairs, shape=(1, *pairs.shape[1:])), pairs]).astype(np.float32)


def rotate(x: Heads, table: Float[Array, "positions pairs 2"]) -> Heads:
    """Rotate neighboring features of queries or keys.

    Args:
      x: Queries or keys.
      table: See :func:`rotary_table`.

    Example:
      >>> quarter = jnp.array([[[0.0, 1.0]]])
      >>> rotate(jnp.array([[[[1.0, 2.0]]]]), quarter).tolist()
      [[[[-2.0, 1.0]]]]
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cosine, sine = table[None, :, None, :, 0], table[None, :, None, :, 1]
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


class MaskedTransformer(_TokenTransformer):
    """A transformer that gives each masked token of an image a distribution, from its class and the known tokens.

    A layer norm stands behind each sum, as in BERT, and the last layer is the table of the tokens. What is masked is an
    argument of its own, so that no code can be taken for the mask.

    Attributes:
      num_codes: Number of codes.
      grid: Rows and columns of the tokens.
      num_classes: Number of classes; 0 for none. Class number ``num_classes`` stands for no class.
      dim: Features of a token.
      depth: Number of blocks.
      heads: Heads of the attention.
      mlp_dim: Hidden features of a block; None: four times ``dim``.
      dropout: Rate of dropout behind tokens, attention and hidden features.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms and logits are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> model = MaskedTransformer(num_codes=16, grid=(2, 3), num_classes=10, dim=16, depth=1, heads=2)
      >>> tokens, masked = jnp.zeros((4, 6), jnp.int32), jnp.ones((4, 6), bool)
      >>> logits, variables = model.init_with_output(jax.random.key(0), tokens, masked, jnp.arange(4))
      >>> logits.shape
      (4, 6, 16)

    Source: Chang et al., 2022 (arXiv 2202.04200).
    """

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        masked: Bool[Array, "batch positions"],
        classes: Classes | None = None,
        *,
        train: bool | None = None,
    ) -> Logits:
        """Return the logits of each token by the class and the tokens that are not masked.

        Args:
          tokens: Codes in [0, num_codes), row by row; any where they are masked.
          masked: Where they are.
          classes: Class of each image; ``num_classes``, and None, stand for no class.
          train: Whether there is dropout, by the stream ``dropout``.

        Raises:
          UserError: The tokens do not fit the grid, or ``train`` is not given.
        """
        train = self._check(tokens, classes, train)
        # Codes, then the mask, then the classes.
        words = jnp.where(masked, self.num_codes, tokens)
        of_class = self.num_codes + 1 + self._classes_of(tokens, classes)
        words = jnp.concatenate([of_class[:, None], words], axis=1)
        size = self.num_codes + 2 + self.num_classes
        table = nn.Embed(size, self.dim, embedding_init=_TRUNCATED, name="token_table")
        places = self.param("positions", _TRUNCATED, (1 + self.positions, self.dim), jnp.float32)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(_bert_norm("norm")(table(words) + places[None]))
        block = nn.remat(_BertBlock, static_argnums=(2,)) if self.remat else _BertBlock
        hidden = self.mlp_dim or 4 * self.dim
        for number in range(self.depth):
            x = block(self.heads, hidden, self.dropout, self.dtype, name=f"blocks_{number}")(x, train)
        x = _bert_dense(self.dim, None, "head")(x[:, 1:])
        x = _bert_norm("head_norm")(nn.gelu(x))
        bias = self.param("bias", nn.initializers.zeros, (self.num_codes,), jnp.float32)
        return x @ table.embedding[: self.num_codes].T + bias[None, None]


class _BertBlock(nn.Module):
    """Attention and a two-layer network, each with a layer norm behind its sum with its input."""

    heads: int
    hidden: int
    dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Vectors, train: bool) -> Vectors:
        dim, drop = x.shape[-1], nn.Dropout(self.dropout, deterministic=not train)
        query, key, value = (
            _bert_dense(dim, self.dtype, name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = _bert_norm("attention_norm")(x + drop(_bert_dense(dim, self.dtype, "out")(attended)))
        y = nn.gelu(_bert_dense(self.hidden, self.dtype, "mlp_1")(x))
        return _bert_norm("mlp_norm")(x + drop(_bert_dense(dim, self.dtype, "mlp_2")(y)))


def _rms_norm() -> nn.RMSNorm:
    return nn.RMSNorm(_RMS_EPSILON, use_fast_variance=False, dtype=jnp.float32)


def _bert_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(_BERT_EPSILON, use_fast_variance=False, dtype=jnp.float32, name=name)


def _bert_dense(features: int, dtype: DTypeLike | None, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_TRUNCATED, name=name)
