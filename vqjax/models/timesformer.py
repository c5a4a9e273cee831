"""Encoder and decoder of clips by attention that is divided into time and space."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.models.layers import LARGEST_DIM, Clips, check_clips, check_dtype, check_patches, dense
from vqjax.models.vit import PatchToPixels
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import check_flags, require, require_count

Tokens = Float[Array, "batch frames rows columns _"]


class _TimeSformer(nn.Module):
    """Size and options that encoder and decoder share; see :class:`TimeSformerEncoder`."""

    takes_clips: ClassVar[bool] = True

    patch_size: int = 2
    dim: int = 256
    depth: int = 8
    heads: int = 4
    mlp_dim: int = 768
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_dtype(self.dtype)
        for name in ("patch_size", "dim", "depth", "heads", "mlp_dim"):
            require_count(name, getattr(self, name), largest=LARGEST_DIM)
        require(self.dim % self.heads == 0, "dim", self.dim, f"a multiple of heads={self.heads}")


class TimeSformerEncoder(_TimeSformer):
    """Clips to a grid of vectors for each frame, one for each patch.

    Each block has attention over time, of the patches at one place, then over space, of the patches of one frame, then
    a two-layer network. Positions in space and in time are learned: parameters are of the frames, rows and columns that
    they were made with.

    Attributes:
      patch_size: Height and width of a patch in pixels; a patch is of one frame.
      dim: Features of a token, a multiple of ``heads``.
      depth: Number of blocks.
      heads: Heads of the attention, of ``dim // heads`` features each.
      mlp_dim: Hidden features of the two-layer networks.
      code_dim: Features of the output, by a linear layer.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of all layers but norms and the last, such as ``"bfloat16"``; parameters and output are float32.

    Raises:
      UserError: A size is out of range, patches do not cover the clips, or the parameters are of other sizes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = TimeSformerEncoder(dim=16, depth=1, mlp_dim=32, code_dim=4)
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 5, 8, 4, 3)))[0].shape
      (1, 5, 4, 2, 4)

    Source: Bertasius et al., 2021 (arXiv 2102.05095), without the class token; sizes of Fifty et al., ICLR 2025
    (arXiv 2410.06424), Table 11.
    """

    code_dim: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("code_dim", self.code_dim, largest=LARGEST_DIM)

    @nn.compact
    def __call__(self, clips: Clips) -> Tokens:
        check_clips(clips)
        size = self.patch_size
        check_patches("`clips`", clips.shape[2:4], size)
        x = nn.Conv(self.dim, (size, size), size, "VALID", dtype=self.dtype, name="to_tokens")(clips)
        return dense(self.code_dim, name="to_codes")(_transformer(self)(x))


class TimeSformerDecoder(_TimeSformer):
    """A grid of codes for each frame to clips, one patch for each code. The output is not bounded.

    Attributes:
      image_channels: Channels of the clips. For all others see the encoder; codes are brought to ``dim`` features by a
        linear layer.

    Raises:
      UserError: A size is out of range, or the parameters are of other sizes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = TimeSformerDecoder(dim=16, depth=1, mlp_dim=32)
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 5, 4, 2, 4)))[0].shape
      (1, 5, 8, 4, 3)

    Source: Bertasius et al., 2021 (arXiv 2102.05095), without the class token; sizes of Fifty et al., ICLR 2025
    (arXiv 2410.06424), Table 11.
    """

    image_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("image_channels", self.image_channels, largest=LARGEST_DIM)

    def setup(self) -> None:
        self.conv_out = PatchToPixels(self.patch_size, self.image_channels)

    def __call__(self, codes: Tokens) -> Clips:
        return self.to_images(self.features(codes))

    @nn.compact
    def features(self, codes: Tokens) -> Tokens:
        """Return the float32 input of the last layer, ``conv_out``; see :meth:`VQGANDecoder.features`."""
        x = dense(self.dim, dtype=self.dtype, name="from_codes")(codes)
        return _transformer(self)(x)

    def to_images(self, features: Tokens) -> Clips:
        """Return clips from the features in front of the last layer."""
        return self.conv_out(features)


class _Transformer(nn.Module):
    """Positions, blocks of attention over time and space, and a last norm."""

    depth: int
    heads: int
    mlp_dim: int
    remat: bool = False
    dtype: DTypeLike | None = None

    @automatic_axes
    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, frames, rows, columns, dim = x.shape
        self._check_size(frames, rows, columns)
        in_space = self.param("space", nn.initializers.truncated_normal(0.02), (rows, columns, dim), jnp.float32)
        in_time = self.param("time", nn.initializers.zeros, (frames, dim), jnp.float32)
        x = x.astype(jnp.float32) + in_space[None, None] + in_time[None, :, None, None]
        x = x.reshape(batch, frames, rows * columns, dim)
        block = nn.remat(_Block) if self.remat else _Block
        for i in range(self.depth):
            x = block(self.heads, self.mlp_dim, self.dtype, name=f"block_{i}")(x)
        return _norm("norm")(x).reshape(batch, frames, rows, columns, dim)

    def _check_size(self, frames: int, rows: int, columns: int) -> None:
        """Refuse clips of another size than those that the positions are for."""
        if not self.has_variable("params", "time"):
            return
        known = (*self.get_variable("params", "time").shape[:1], *self.get_variable("params", "space").shape[:2])
        if known != (frames, rows, columns):
            raise UserError(
                f"`clips` must have {known[0]} frames of {known[1]} x {known[2]} patches, as those that the parameters "
                f"were made with, got {frames} of {rows} x {columns}; cut or resize them."
            )


def _transformer(module: _TimeSformer) -> _Transformer:
    return _Transformer(module.depth, module.heads, module.mlp_dim, module.remat, module.dtype, name="transformer")


class _Block(nn.Module):
    """Attention over time, attention over space and a two-layer network, each behind a norm and added to its input."""

    heads: int
    mlp_dim: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames places dim"]) -> Float[Array, "batch frames places dim"]:
        dim = x.shape[-1]
        of_places = _norm("time_norm")(x).swapaxes(1, 2)
        over_time = _Attention(self.heads, self.dtype, name="time")(of_places).swapaxes(1, 2)
        # As in the original, a block starts as one of each frame by itself.
        zeros = nn.initializers.zeros
        x = x + dense(dim, dtype=self.dtype, kernel_init=zeros, name="from_time")(over_time)
        x = x + _Attention(self.heads, self.dtype, name="space")(_norm("space_norm")(x))
        hidden = dense(self.mlp_dim, dtype=self.dtype, name="mlp_1")(_norm("mlp_norm")(x))
        return x + dense(dim, dtype=self.dtype, name="mlp_2")(nn.gelu(hidden, approximate=False))


class _Attention(nn.Module):
    """Attention of the tokens of the last axis but one with each other."""

    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch tokens dim"]) -> Float[Array, "*batch tokens dim"]:
        tokens, dim = x.shape[-2:]
        projected = dense(3 * dim, dtype=self.dtype, name="qkv")(x)
        query, key, value = (
            part.reshape(-1, tokens, self.heads, dim // self.heads) for part in jnp.split(projected, 3, axis=-1)
        )
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return dense(dim, dtype=self.dtype, name="out")(attended)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-6, use_fast_variance=False, dtype=jnp.float32, name=name)
