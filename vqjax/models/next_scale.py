"""Next-scale prediction: a transformer over the tokens of a multi-scale quantizer, its inputs and its sampler."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Key, PyTree

from vqjax.errors import UserError
from vqjax.functional.norms import normalize
from vqjax.functional.numbers import Number, is_zero
from vqjax.functional.resampling import adaptive_average_pool
from vqjax.models.layers import LARGEST_DIM, dense
from vqjax.models.sampling import check_guidance, guided, restricted, with_none
from vqjax.models.transformer import LARGEST_VOCABULARY, Classes, Heads, Logits, Tokens, Vectors, check_sizes
from vqjax.quantizers.multi_scale import MultiScaleVQ, join_scales
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import is_count, require, require_count

Inputs = Float[Array, "batch inputs code_dim"]
Condition = Float[Array, "batch dim"]
LogitsOfScale = Float[Array, "batch _ codes"]
Seen = Float[Array, "batch _ heads head_dim"]
ScaleCache = tuple[tuple[Seen, Seen], ...]
"""Keys and values of the scales that were seen, of each block; empty before the first scale."""

ScaleStep = Callable[[int, Tokens, Any], tuple[LogitsOfScale, Any]]

_EPSILON = 1e-6
_START_OF_SCALE, _LARGEST_SCALE = 4.0, 100.0


class NextScaleTransformer(nn.Module):
    r"""A transformer that gives all tokens of a scale their distributions at once, from the class and coarser scales.

    .. math:: \log p(x \mid c) = \sum_k \sum_i \log p(x_{k,i} \mid c, x_{<k})

    At each scale it sees the map that the coarser scales add up to, averaged down to the size of the scale; at the
    first, the class. A position attends to those of its own and of coarser scales. The class also scales, shifts and
    gates what each block computes (AdaLN); gates start at zero, so that a block starts as the identity. Queries and
    keys have unit length, and the queries of a head a factor that is learned. The last layer starts at zero, that is
    with uniform distributions.

    Attributes:
      num_codes: Number of codes.
      scales: Size of the token map at each scale, coarse to fine: a side, or rows and columns; those of the
        :class:`vqjax.MultiScaleVQ`.
      code_dim: Features of the quantizer's map.
      num_classes: Number of classes; 0 for none. Class number ``num_classes`` stands for no class.
      dim: Features of a position.
      depth: Number of blocks.
      heads: Heads of the attention.
      mlp_dim: Hidden features of a block; None: four times ``dim``.
      dropout: Rate of dropout behind attention and hidden features.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms and logits are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> sizes = {"num_codes": 16, "scales": (1, 2, 3), "code_dim": 4, "num_classes": 10}
      >>> model = NextScaleTransformer(**sizes, dim=16, depth=1, heads=2)
      >>> inputs, classes = jnp.zeros((5, 4 + 9, 4)), jnp.arange(5)
      >>> logits, variables = model.init_with_output(jax.random.key(0), inputs, classes)
      >>> logits.shape
      (5, 14, 16)

    Source: Tian et al., 2024 (arXiv 2404.02905), without the stochastic depth of the authors' code.
    """

    num_codes: int
    scales: Sequence[int | Sequence[int]]
    code_dim: int
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
        require_count("num_codes", self.num_codes, largest=LARGEST_VOCABULARY)
        require_count("code_dim", self.code_dim, largest=LARGEST_DIM)
        several = isinstance(self.scales, Sequence) and len(self.scales) > 1 and all(map(_is_scale, self.scales))
        expected = "two or more sides, or rows and columns, such as (1, 2, (4, 3))"
        require(several, "scales", self.scales, expected, "pass those of the quantizer")
        # A module has to be hashable, and lists come from configs.
        object.__setattr__(self, "scales", tuple(s if is_count(s) else tuple(s) for s in self.scales))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each scale."""
        return tuple((scale, scale) if is_count(scale) else scale for scale in self.scales)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(map(math.prod, self.shapes))

    @property
    def positions(self) -> int:
        """Number of tokens of an image."""
        return sum(self.sizes)

    def setup(self) -> None:
        std = math.sqrt(1 / (3 * self.dim))
        normal = nn.initializers.normal(std)
        self.class_table = nn.Embed(self.num_classes + 1, self.dim, embedding_init=normal)
        self.scale_table = nn.Embed(len(self.scales), self.dim, embedding_init=normal)
        self.position_table = self.param("position_table", normal, (self.positions, self.dim), jnp.float32)
        self.map_in = dense(self.dim, kernel_init=normal)
        block = nn.remat(_Block, static_argnums=(5,)) if self.remat else _Block
        hidden = self.mlp_dim or 4 * self.dim
        std_out = std / math.sqrt(2 * self.depth)
        options = {"std": std, "std_out": std_out, "dropout": self.dropout, "dtype": self.dtype}
        self.blocks = [block(self.heads, hidden, **options) for _ in range(self.depth)]
        self.modulation = nn.Dense(2 * self.dim, kernel_init=nn.initializers.normal(std / 2))
        self.head = dense(self.num_codes, kernel_init=nn.initializers.zeros)

    @automatic_axes
    def __call__(self, inputs: Inputs, classes: Classes | None = None, *, train: bool | None = None) -> Logits:
        """Return the logits of the tokens of all scales, each by the class and the tokens of coarser scales.

        Args:
          inputs: What :func:`scale_inputs` makes of the tokens.
          classes: Class of each image; ``num_classes``, and None, stand for no class.
          train: Whether there is dropout, by the stream ``dropout``.

        Raises:
          UserError: The inputs do not fit the scales, or ``train`` is not given.
        """
        self._check_inputs(inputs, self.positions - self.sizes[0])
        if classes is None:
            classes = jnp.full(len(inputs), self.num_classes)
        if classes.shape != inputs.shape[:1]:
            raise UserError(
                f"`classes` must be one for each of {len(inputs)} images, got shape {list(classes.shape)}; pass "
                f"{self.num_classes} for images without one."
            )
        if train is None and not self.is_initializing():
            raise UserError(f"`train` must be True or False for {type(self).__name__}, got None; say which.")
        condition = self.class_table(classes)
        x = jnp.concatenate([self._first(condition), self.map_in(inputs)], axis=1) + self._places(0, len(self.scales))
        scale_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        mask = jnp.asarray(scale_of[:, None] >= scale_of[None])[None, None]
        for block in self.blocks:
            x, _ = block(x, nn.silu(condition), None, mask, bool(train))
        return self._logits(x, condition)

    @automatic_axes
    def step(self, scale: int, inputs: Inputs | None, classes: Classes, cache: ScaleCache) -> tuple[Logits, ScaleCache]:
        """Return the logits of the tokens of one scale, and the cache with it; the same as those of a whole pass.

        Args:
          scale: Number of the scale, from 0.
          inputs: The inputs of this scale alone; None at the first.
          classes: Class of each image, as in a whole pass.
          cache: Cache of the scales before; ``()`` at the first.

        Raises:
          UserError: The inputs do not fit the scale.
        """
        condition = self.class_table(classes)
        if scale == 0:
            x = self._first(condition)
        else:
            self._check_inputs(inputs, self.sizes[scale])
            x = self.map_in(inputs)
        x, seen = x + self._places(scale, scale + 1), []
        for block, of_block in zip(self.blocks, cache or (None,) * self.depth, strict=True):
            x, of_block = block(x, nn.silu(condition), of_block, None, False)
            seen.append(of_block)
        return self._logits(x, condition), tuple(seen)

    def _first(self, condition: Condition) -> Vectors:
        """What the positions of the first scale see: the class."""
        return jnp.repeat(condition[:, None], self.sizes[0], axis=1)

    def _places(self, first: int, end: int) -> Float[Array, "1 positions dim"]:
        """Embeddings of the positions of some scales, and of these scales."""
        scale_of = np.repeat(np.arange(first, end), self.sizes[first:end])
        start = sum(self.sizes[:first])
        return (self.scale_table(jnp.asarray(scale_of)) + self.position_table[start : start + len(scale_of)])[None]

    def _logits(self, x: Vectors, condition: Condition) -> Logits:
        return self.head(_modulated(x, *jnp.split(self.modulation(nn.silu(condition)), 2, axis=-1)))

    def _check_inputs(self, inputs: Array | None, positions: int) -> None:
        found = "None" if inputs is None else f"{inputs.dtype} of shape {list(inputs.shape)}"
        floats = inputs is not None and jnp.issubdtype(inputs.dtype, jnp.floating) and inputs.ndim == 3
        if not floats or inputs.shape[1:] != (positions, self.code_dim):
            raise UserError(
                f"`inputs` must be floats of shape [batch, {positions}, {self.code_dim}], got {found}; make them of "
                f"the tokens with scale_inputs and a quantizer of the scales {self.scales}."
            )


class _Block(nn.Module):
    """Attention and a two-layer network, each between a norm and a gate that the class modulates."""

    heads: int
    hidden: int
    std: float
    std_out: float
    dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(
        self,
        x: Vectors,
        condition: Condition,
        seen: tuple[Seen, Seen] | None,
        mask: Bool[Array, "1 1 positions positions"] | None,
        train: bool,
    ) -> tuple[Vectors, tuple[Seen, Seen]]:
        """Return the output, with the keys and values of all positions, those seen before in front."""
        dim, drop = x.shape[-1], nn.Dropout(self.dropout, deterministic=not train)

        def linear(features: int, name: str, std: float = self.std, use_bias: bool = True) -> nn.Dense:
            kernel_init = nn.initializers.normal(std)
            return dense(features, use_bias=use_bias, dtype=self.dtype, kernel_init=kernel_init, name=name)

        def heads(y: Vectors) -> Heads:
            return y.reshape(*y.shape[:2], self.heads, -1)

        gates = nn.Dense(2 * dim, kernel_init=nn.initializers.zeros, name="gates")(condition)
        modulation = nn.Dense(4 * dim, kernel_init=nn.initializers.normal(self.std / 2), name="modulation")(condition)
        gate_1, gate_2 = jnp.split(gates[:, None], 2, axis=-1)
        scale_1, shift_1, scale_2, shift_2 = jnp.split(modulation, 4, axis=-1)
        y = _modulated(x, scale_1, shift_1)
        # Keys without a bias, as in the authors' code.
        key, value = heads(linear(dim, "key", use_bias=False)(y)), heads(linear(dim, "value")(y))
        start = nn.initializers.constant(math.log(_START_OF_SCALE))
        factor = jnp.exp(jnp.minimum(self.param("log_scale", start, (self.heads,)), math.log(_LARGEST_SCALE)))
        query = normalize(heads(linear(dim, "query")(y)).astype(jnp.float32)) * factor[None, None, :, None]
        key = normalize(key.astype(jnp.float32)).astype(value.dtype)
        if seen is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in zip(seen, (key, value), strict=True))
        attended = jax.nn.dot_product_attention(query.astype(value.dtype), key, value, mask=mask, scale=1.0)
        x = x + gate_1 * drop(linear(dim, "out", self.std_out)(attended.reshape(x.shape)))

        y = nn.gelu(linear(self.hidden, "mlp_1")(_modulated(x, scale_2, shift_2)))
        return x + gate_2 * drop(linear(dim, "mlp_2", self.std_out)(y)), (key, value)


def scale_inputs(quantizer: MultiScaleVQ, variables: PyTree[Any], indices: Integer[Array, "batch tokens"]) -> Inputs:
    """Return what a transformer sees at each scale but the first: the map of the scales before, in the scale's size.

    Maps are added up in the size of the last scale, whatever the size was of those that the quantizer encoded.

    Args:
      quantizer: The quantizer of the tokens, of maps with two axes of space.
      variables: Its variables.
      indices: Tokens of all scales, or of the first scales alone.

    Returns:
      Features of the quantizer's map for the scales from the second to that which follows the last given one; given
      all, to the last.

    Raises:
      UserError: The tokens end within a scale.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = MultiScaleVQ(VectorQuantizer(num_codes=16), scales=(1, 2, 3))
      >>> variables = jax.jit(vq.init)(jax.random.key(0), jnp.ones((1, 3, 3, 4)))
      >>> indices = jnp.arange(5 * 14).reshape(5, 14) % 16
      >>> inputs = scale_inputs(vq, variables, indices)
      >>> inputs.shape
      (5, 13, 4)
      >>> bool((scale_inputs(vq, variables, indices[:, :1]) == inputs[:, :4]).all())
      True

    Source: Tian et al., 2024 (arXiv 2404.02905), Section 3.2.
    """
    maps = quantizer.apply(variables, indices, method="decode_scales")
    # Given all scales, nothing follows the last map.
    pooled = [adaptive_average_pool(x, shape)[0] for x, shape in zip(maps, quantizer.shapes[1:], strict=False)]
    return join_scales(pooled, quantizer.spatial_dims, features=1)


def scale_guidance(guidance: Number, scale: int, num_scales: int) -> Number:
    r"""Return the guidance at a scale, :math:`1 + (s - 1)\, k / (K - 1)`: none at the first, all at the last.

    Args:
      guidance: :math:`s`, the scale of :func:`vqjax.models.sampling.guided` at the last scale.
      scale: Number of the scale from 0, :math:`k`.
      num_scales: Number of scales, :math:`K`.

    Example:
      >>> [scale_guidance(2.5, scale, 3) for scale in range(3)]
      [1.0, 1.75, 2.5]

    Source: the code of Tian et al., 2024 (arXiv 2404.02905), whose ``cfg`` is :math:`s - 1`.
    """
    check_guidance(guidance)
    return 1 + (guidance - 1) * (scale / (num_scales - 1))


def guided_step(
    model: NextScaleTransformer,
    variables: PyTree[Any],
    quantizer: MultiScaleVQ,
    quantizer_variables: PyTree[Any],
    classes: Classes,
    guidance: Number = 1.0,
) -> ScaleStep:
    """Return the step of a transformer for :func:`sample_scales`, with guidance that grows with the scale.

    Args:
      model: The transformer.
      variables: Its variables.
      quantizer: The quantizer of the tokens.
      quantizer_variables: Its variables.
      classes: Class of each image; ``num_classes`` of the model stands for no class.
      guidance: Guidance at the last scale, see :func:`scale_guidance`; with 1, logits without a class are not computed.
    """

    guides = not is_zero(guidance - 1)
    if guides:
        classes = with_none(classes, model.num_classes)

    def step(scale: int, tokens: Tokens, cache: Any) -> tuple[LogitsOfScale, Any]:
        inputs = None
        if scale > 0:
            # Maps of coarser scales are made again each time: next to the transformer, they cost nothing.
            inputs = scale_inputs(quantizer, quantizer_variables, tokens)[:, -model.sizes[scale] :]
            inputs = jnp.concatenate([inputs, inputs]) if guides else inputs
        logits, cache = model.apply(variables, scale, inputs, classes, cache, method="step")
        if guides:
            logits = guided(*jnp.split(logits, 2), scale_guidance(guidance, scale, len(model.scales)))  # pyright: ignore[reportCallIssue]
        return logits, cache

    return step


def sample_scales(
    step: ScaleStep,
    key: Key[Array, ""],
    *,
    batch: int,
    num_scales: int,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: Number | None = None,
) -> Tokens:
    """Draw tokens scale by scale, those of a scale independently of one another.

    The tokens of scale ``k`` are drawn with the key ``fold_in(key, k)``.

    Args:
      step: Function ``(scale, tokens, cache) -> (logits, cache)`` of the number of a scale, the tokens of the scales
        before, and what it returned for the scale before; such as :func:`guided_step` makes.
      key: Random key.
      batch: Number of images.
      num_scales: Number of scales.
      temperature: See :func:`vqjax.models.sampling.restricted`.
      top_k: See :func:`vqjax.models.sampling.restricted`.
      top_p: See :func:`vqjax.models.sampling.restricted`.

    Returns:
      The tokens of all scales, as the quantizer decodes them.

    Example:
      >>> uniform = lambda scale, tokens, cache: (jnp.zeros((2, (scale + 1) ** 2, 8)), cache)
      >>> sample_scales(uniform, jax.random.key(0), batch=2, num_scales=3).shape
      (2, 14)

    Source: Tian et al., 2024 (arXiv 2404.02905).
    """
    tokens, cache = jnp.zeros((batch, 0), jnp.int32), ()
    for scale in range(num_scales):
        logits, cache = step(scale, tokens, cache)
        logits = restricted(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        drawn = jax.random.categorical(jax.random.fold_in(key, scale), logits).astype(jnp.int32)
        tokens = jnp.concatenate([tokens, drawn], axis=1)
    return tokens


def _is_scale(value: object) -> bool:
    return is_count(value) or (isinstance(value, Sequence) and len(value) == 2 and all(map(is_count, value)))


def _modulated(x: Vectors, scale: Condition, shift: Condition) -> Vectors:
    """A norm, scaled and shifted."""
    options = {"use_bias": False, "use_scale": False, "use_fast_variance": False, "dtype": jnp.float32}
    # Without variables of its own, it is no part of the module that calls it.
    norm = nn.LayerNorm(_EPSILON, **options, parent=None)
    return norm.apply({}, x) * (1 + scale[:, None]) + shift[:, None]
