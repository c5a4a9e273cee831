"""Transformers over the tokens of an image: one that is causal, and one that fills in what is masked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import UserError
from vqjax.models.layers import LARGEST_DIM, check_dtype, dense, rows_product
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import check_flags, is_fraction, require, require_count, require_counts

Tokens = Int[Array, "batch positions *levels"]
Classes = Int[Array, " images"]
Logits = Float[Array, "batch positions codes"] | tuple[Float[Array, "batch positions _codes"], ...]
Vectors = Float[Array, "batch positions dim"]
Heads = Float[Array, "batch positions heads head_dim"]
Seen = Float[Array, "batch all_positions heads head_dim"]
KeysAndValues = tuple[tuple[Seen, Seen], ...]

LARGEST_VOCABULARY = 2**20
_RMS_EPSILON, _BERT_EPSILON = 1e-5, 1e-12
_ROTARY_BASE = 10_000.0
_SMALL = nn.initializers.normal(0.02)
_TRUNCATED = nn.initializers.truncated_normal(0.02)


class Cache(NamedTuple):
    """What a causal transformer has seen; zero at first.

    Attributes:
      positions: Keys and values of the positions, of each block its own: updates of one array would copy all of it.
      levels: Those of the levels of one position, of all blocks of the depth head.
      codes: Sum of the vectors of the codes that were given at the position.
    """

    positions: KeysAndValues
    levels: KeysAndValues
    codes: Float[Array, "batch dim"]


def check_sizes(model: nn.Module) -> None:
    """Refuse sizes and options that no transformer over tokens can have.

    Args:
      model: A module with ``num_classes``, ``dim``, ``depth``, ``heads``, ``mlp_dim``, ``dropout`` and ``dtype``.

    Raises:
      UserError: One of them is out of range.
    """
    check_flags(model)
    check_dtype(model.dtype)
    require_count("num_classes", model.num_classes, largest=LARGEST_VOCABULARY, smallest=0)
    for name in ("dim", "depth", "heads"):
        require_count(name, getattr(model, name), largest=LARGEST_DIM)
    if model.mlp_dim is not None:
        require_count("mlp_dim", model.mlp_dim, largest=LARGEST_DIM)
    require(is_fraction(model.dropout), "dropout", model.dropout, "a number in [0, 1)")
    require(model.dim % model.heads == 0, "dim", model.dim, f"a multiple of heads={model.heads}")


class _TokenTransformer(nn.Module):
    """Size and options that both transformers share; see :class:`CausalTransformer`."""

    num_codes: int | tuple[int, ...]
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
        check_sizes(self)
        if isinstance(self.num_codes, tuple | list):
            require_counts("num_codes", self.num_codes, LARGEST_VOCABULARY, "give one for each level")
        else:
            require_count("num_codes", self.num_codes, largest=LARGEST_VOCABULARY)
        if len(self.grid) != 2:
            raise UserError(f"grid must be rows and columns such as (16, 16), got {self.grid!r}.")
        for side in self.grid:
            require_count("grid", side, largest=LARGEST_DIM)

    @property
    def positions(self) -> int:
        """Number of positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def levels(self) -> int | None:
        """Number of codes at each position, along the last axis of the tokens; None for tokens without that axis."""
        return len(self.num_codes) if isinstance(self.num_codes, tuple | list) else None

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return (self.num_codes,) if self.levels is None else tuple(self.num_codes)

    def _words(self, tokens: Tokens) -> Int[Array, "batch positions all_levels"]:
        """Rows of the table of all levels, in which those of a level lie behind those of the levels before."""
        tokens = tokens.astype(jnp.int32).reshape(*tokens.shape[:2], len(self._sizes))
        return tokens + jnp.broadcast_to(jnp.asarray(_starts(self._sizes), jnp.int32), tokens.shape)

    def _check(self, tokens: Tokens, classes: Classes | None, train: bool | None) -> bool:
        shape = (self.positions,) if self.levels is None else (self.positions, self.levels)
        if tokens.shape[1:] != shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
            (rows, columns), sizes = self.grid, ", ".join(map(str, shape))
            raise UserError(
                f"tokens must be integers of shape [batch, {sizes}], row by row of grid={rows} x {columns}, got "
                f"{tokens.dtype} of shape {list(tokens.shape)}; give num_codes as a tuple for tokens with levels, "
                "and as one number for others."
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

    Where a position has several codes, those of a residual quantizer or digits of one index, it is the sum of their
    vectors, and a depth head gives each level :math:`d` a distribution from those before it, :math:`p(x_{id} \mid c,
    x_{<i}, x_{i,<d})`: a causal transformer over the features of the position and then the sums of the vectors of the
    codes so far, with a last layer for each level.

    Attributes:
      num_codes: Number of codes; a tuple of them for several codes at each position, one number for each level.
      grid: Rows and columns of the tokens.
      num_classes: Number of classes; 0 for none. Class number ``num_classes`` stands for no class.
      dim: Features of a token.
      depth: Number of blocks.
      heads: Heads of the attention; a head has a multiple of 4 features.
      mlp_dim: Hidden features of a block; None: eight thirds of ``dim``, rounded up to a multiple of 256.
      dropout: Rate of dropout behind tokens, attention and hidden features.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms and logits are float32.
      head_depth: Number of blocks of the depth head; of no effect without levels.
      tied: Whether the last layer shares its weights with the table of codes.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> model = CausalTransformer(num_codes=16, grid=(2, 3), num_classes=10, dim=16, depth=1, heads=2)
      >>> tokens, classes = jnp.zeros((4, 6), jnp.int32), jnp.arange(4)
      >>> logits, variables = model.init_with_output(jax.random.key(0), tokens, classes)
      >>> logits.shape
      (4, 6, 16)

      A code of 16 and one of 8 at each position:

      >>> model = CausalTransformer(num_codes=(16, 8), grid=(2, 3), num_classes=10, dim=16, depth=1, heads=2)
      >>> logits, variables = model.init_with_output(jax.random.key(0), jnp.zeros((4, 6, 2), jnp.int32), classes)
      >>> [of_level.shape for of_level in logits]
      [(4, 6, 16), (4, 6, 8)]

    Source: Sun et al., 2024 (arXiv 2406.06525); Lee et al., 2022 (arXiv 2203.01941) for the depth head.
    """

    head_depth: int = 2
    tied: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("head_depth", self.head_depth, largest=LARGEST_DIM)
        head_dim = self.dim // self.heads
        require(head_dim % 4 == 0, "dim", self.dim, f"a multiple of 4 for each of heads={self.heads}")

    def setup(self) -> None:
        hidden = self.mlp_dim or -(-int(8 * self.dim / 3) // 256) * 256
        block = nn.remat(_CausalBlock, static_argnums=(3,)) if self.remat else _CausalBlock

        def blocks(depth: int) -> list[_CausalBlock]:
            return [block(self.dim, self.heads, hidden, self.dropout, self.dtype) for _ in range(depth)]

        def last_layer(num_codes: int) -> nn.Dense:
            return dense(num_codes, use_bias=False, kernel_init=nn.initializers.zeros)

        self.token_table = nn.Embed(sum(self._sizes), self.dim, embedding_init=_SMALL)
        self.class_table = nn.Embed(self.num_classes + 1, self.dim, embedding_init=_SMALL)
        self.blocks, self.drop, self.norm = blocks(self.depth), nn.Dropout(self.dropout), _rms_norm()
        self.level_blocks = [] if self.levels is None else blocks(self.head_depth)
        if not self.tied:
            self.head: Any = last_layer(self.num_codes) if self.levels is None else list(map(last_layer, self._sizes))

    @automatic_axes
    def __call__(self, tokens: Tokens, classes: Classes | None = None, *, train: bool | None = None) -> Logits:
        """Return the logits of each token by the class and the tokens before it.

        Args:
          tokens: Codes in [0, num_codes), row by row, with levels along a last axis.
          classes: Class of each image; ``num_classes``, and None, stand for no class.
          train: Whether there is dropout, by the stream ``dropout``.

        Returns:
          The logits; a tuple of those of each level if there are levels.

        Raises:
          UserError: The tokens do not fit the grid, or ``train`` is not given.
        """
        train = self._check(tokens, classes, train)
        codes = self.token_table(self._words(tokens))
        before = self.class_table(self._classes_of(tokens, classes))[:, None]
        x = self.drop(jnp.concatenate([before, jnp.sum(codes, axis=2)[:, :-1]], axis=1), deterministic=not train)
        table, level_table = self._tables()
        for block in self.blocks:
            x = block(x, table, train)
        x = jnp.concatenate([x[:, :, None], jnp.cumsum(codes, axis=2)[:, :, :-1]], axis=2)
        of_levels = x.reshape(-1, *x.shape[2:])
        for block in self.level_blocks:
            of_levels = block(of_levels, level_table, train)
        x = self.norm(of_levels.reshape(x.shape))
        logits = [self._logits(x[:, :, level], level) for level in range(len(self._sizes))]
        return logits[0] if self.levels is None else tuple(logits)

    def _logits(self, x: Vectors, level: int) -> Float[Array, "batch positions codes"]:
        """The logits of the codes of a level, from the features of the last block."""
        if self.tied:
            first = _starts(self._sizes)[level]
            return rows_product(x, self.token_table.embedding[first : first + self._sizes[level]].T)
        head = self.head if self.levels is None else self.head[level]
        return head(x)

    def _tables(self) -> tuple[Float[Array, "positions pairs 2"], Float[Array, "levels pairs 2"]]:
        """Rotations by position, and by level."""
        head_dim = self.dim // self.heads
        # Levels have no class in front of them.
        of_levels = rotary_table((1, len(self._sizes) + 1), head_dim)[1:]
        return jnp.asarray(rotary_table(self.grid, head_dim)), jnp.asarray(of_levels)

    def start_cache(self, batch: int) -> Cache:
        """Return the cache of images without tokens.

        Args:
          batch: Number of images.
        """

        def empty(depth: int, places: int) -> KeysAndValues:
            shape = (batch, places, self.heads, self.dim // self.heads)
            dtype = jnp.dtype(self.dtype or jnp.float32)
            return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(depth))

        head_depth = 0 if self.levels is None else self.head_depth
        codes = jnp.zeros((batch, self.dim), jnp.float32)
        return Cache(empty(self.depth, self.positions), empty(head_depth, len(self._sizes)), codes)

    @automatic_axes
    def step(
        self,
        previous: Classes,
        classes: Classes | None,
        position: Int[Array, ""] | int,
        cache: Cache,
        level: int = 0,
    ) -> tuple[Float[Array, "batch codes"], Cache]:
        """Return the logits of the codes at one position and level, and the cache with it.

        They are those of a whole pass. Levels follow one another, then positions; each code is given in the next step.

        Args:
          previous: The codes of the step before; any at the first.
          classes: Class of each image, as in a whole pass.
          position: The position, from 0.
          cache: Cache of the steps before.
          level: The level, from 0.

        Raises:
          UserError: There is no such level.
        """
        require_count("level", level, largest=len(self._sizes) - 1, smallest=0)
        table, level_table = self._tables()
        # The first level comes behind the last one of the position before.
        codes = cache.codes + self.token_table(previous.astype(jnp.int32) + _starts(self._sizes)[level - 1])
        if level == 0:
            of_class = self.class_table(self._classes_of(previous[:, None], classes))
            x, codes = jnp.where(position == 0, of_class, codes)[:, None], jnp.zeros_like(codes)
            x, of_positions = _step(self.blocks, x, table, position, cache.positions)
        else:
            x, of_positions = codes[:, None], cache.positions
        x, of_levels = _step(self.level_blocks, x, level_table, level, cache.levels)
        return self._logits(self.norm(x), level)[:, 0], Cache(of_positions, of_levels, codes)


class _CausalBlock(nn.Module):
    """Causal attention and SwiGLU, each behind an RMS norm and added to its input."""

    dim: int
    heads: int
    hidden: int
    dropout: float
    dtype: DTypeLike | None

    def setup(self) -> None:
        def linear(features: int) -> nn.Dense:
            return dense(features, use_bias=False, dtype=self.dtype, kernel_init=_SMALL)

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


def _step(
    blocks: Sequence[_CausalBlock],
    x: Vectors,
    table: Float[Array, "places pairs 2"],
    place: Int[Array, ""] | int,
    seen: KeysAndValues,
) -> tuple[Vectors, KeysAndValues]:
    """One place through all blocks, with the keys and values of those before, which it joins."""
    table, joined = jax.lax.dynamic_slice_in_dim(table, place, 1), []
    for block, (keys, values) in zip(blocks, seen, strict=True):
        x, *of_block = block.step(x, table, place, keys, values)
        joined.append(tuple(of_block))
    return x, tuple(joined)


def _starts(sizes: tuple[int, ...]) -> list[int]:
    """First row of each level in a table of all levels."""
    return [sum(sizes[:level]) for level in range(len(sizes))]


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

    Where a position has several codes, those of a residual quantizer or digits of one index, it is the sum of their
    vectors. All of them are masked together, and are independent of one another by what is known.

    Attributes:
      num_codes: Number of codes; a tuple of them for several codes at each position, one number for each level.
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

    Source: Chang et al., 2022 (arXiv 2202.04200); Yu et al., 2023 (arXiv 2310.05737) for several codes.
    """

    @automatic_axes
    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        masked: Bool[Array, "..."],
        classes: Classes | None = None,
        *,
        train: bool | None = None,
    ) -> Logits:
        """Return the logits of each token by the class and the tokens that are not masked.

        Args:
          tokens: Codes in [0, num_codes), row by row, with levels along a last axis; any where they are masked.
          masked: Where they are, ``[batch, positions]``.
          classes: Class of each image; ``num_classes``, and None, stand for no class.
          train: Whether there is dropout, by the stream ``dropout``.

        Returns:
          The logits; a tuple of those of each level if there are levels.

        Raises:
          UserError: The tokens do not fit the grid, nor the masks the tokens, or ``train`` is not given.
        """
        train = self._check(tokens, classes, train)
        if masked.shape != tokens.shape[:2]:
            raise UserError(
                f"masked must be of shape {list(tokens.shape[:2])}, got {list(masked.shape)}; all codes of a position "
                "are masked together."
            )
        # Codes, then a mask for each level, then the classes.
        num_codes, levels = sum(self._sizes), len(self._sizes)
        of_mask = num_codes + jnp.arange(levels, dtype=jnp.int32)
        words = jnp.where(masked[..., None], of_mask[None, None], self._words(tokens))
        of_class = num_codes + levels + self._classes_of(tokens, classes)
        size = num_codes + levels + self.num_classes + 1
        table = nn.Embed(size, self.dim, embedding_init=_TRUNCATED, name="token_table")
        x = jnp.concatenate([table(of_class)[:, None], jnp.sum(table(words), axis=2)], axis=1)
        places = self.param("positions", _TRUNCATED, (1 + self.positions, self.dim), jnp.float32)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(_bert_norm("norm")(x + places[None]))
        block = nn.remat(_BertBlock, static_argnums=(2,)) if self.remat else _BertBlock
        hidden = self.mlp_dim or 4 * self.dim
        for number in range(self.depth):
            x = block(self.heads, hidden, self.dropout, self.dtype, name=f"blocks_{number}")(x, train)
        x = _bert_dense(self.dim, None, "head")(x[:, 1:])
        x = _bert_norm("head_norm")(nn.gelu(x))
        bias = self.param("bias", nn.initializers.zeros, (num_codes,), jnp.float32)
        logits = rows_product(x, table.embedding[:num_codes].T) + bias[None, None]
        return logits if self.levels is None else tuple(jnp.split(logits, _starts(self._sizes)[1:], axis=-1))


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
    return dense(features, dtype=dtype, kernel_init=_TRUNCATED, name=name)
