"""Encoder and decoder of ViT-VQGAN, as enhancing-transformers trains them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.models.layers import LARGEST_DIM, Images, check_dtype, check_images, check_patches, dense
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import check_flags, require_count

Tokens = Float[Array, "batch rows columns _"]

HEAD_DIM = 64
"""Features of a head of the attention."""


class _ViT(nn.Module):
    """Size and options that encoder and decoder share; see :class:`ViTEncoder`."""

    patch_size: int = 8
    dim: int = 512
    depth: int = 8
    heads: int = 8
    mlp_dim: int = 2048
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_dtype(self.dtype)
        for name in ("patch_size", "dim", "depth", "heads", "mlp_dim"):
            require_count(name, getattr(self, name), largest=LARGEST_DIM)


class ViTEncoder(_ViT):
    """Images to a grid of vectors, one for each patch.

    Attributes:
      patch_size: Height and width of a patch in pixels.
      dim: Features of a token.
      depth: Number of transformer blocks.
      heads: Heads of the attention, of 64 features each.
      mlp_dim: Hidden features of the two-layer networks.
      code_dim: Features of the output, by a linear layer; None: ``dim``, without it.
      remat: Compute each block again in the backward pass, instead of keeping its activations.
      dtype: Dtype of all layers but norms and the last, such as ``"bfloat16"``; parameters and output are float32.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = ViTEncoder(dim=16, depth=1, heads=1, mlp_dim=32, code_dim=4)
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 32, 16, 3)))[0].shape
      (1, 4, 2, 4)

    Source: Yu et al., 2022 (arXiv 2110.04627).
    """

    code_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_dim is not None:
            require_count("code_dim", self.code_dim, largest=LARGEST_DIM)

    @nn.compact
    def __call__(self, images: Images) -> Tokens:
        x = to_tokens(images, self.patch_size, self.dim, self.dtype)
        x = _transformer(self)(x)
        return x if self.code_dim is None else dense(self.code_dim, name="to_codes")(x)


class ViTDecoder(_ViT):
    """A grid of codes to images, one patch for each code. The output is not bounded.

    Attributes:
      image_channels: Channels of the images. For all others see the encoder; codes are brought to ``dim`` features by a
        linear layer.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> decoder = ViTDecoder(dim=16, depth=1, heads=1, mlp_dim=32)
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 4, 2, 4)))[0].shape
      (1, 32, 16, 3)

    Source: Yu et al., 2022 (arXiv 2110.04627).
    """

    image_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("image_channels", self.image_channels, largest=LARGEST_DIM)

    def setup(self) -> None:
        self.conv_out = PatchToPixels(self.patch_size, self.image_channels)

    def __call__(self, codes: Tokens) -> Images:
        return self.to_images(self.features(codes))

    @nn.compact
    def features(self, codes: Tokens) -> Tokens:
        """Return the float32 input of the last layer, ``conv_out``; see :meth:`VQGANDecoder.features`."""
        x = dense(self.dim, dtype=self.dtype, name="from_codes")(codes)
        return _transformer(self)(x)

    def to_images(self, features: Tokens) -> Images:
        """Return images from the features in front of the last layer."""
        return self.conv_out(features)


def to_tokens(images: Images, patch_size: int, dim: int, dtype: DTypeLike | None) -> Tokens:
    """Map each patch of images to a token, by the layer ``to_tokens`` of the module that calls.

    Args:
      images: Images in [-1, 1].
      patch_size: Height and width of a patch in pixels.
      dim: Features of a token.
      dtype: Dtype of the layer.

    Raises:
      UserError: The images are no batch of floats, or patches do not cover them.
    """
    check_images(images)
    check_patches("images", images.shape[1:3], patch_size)
    return nn.Conv(dim, (patch_size, patch_size), patch_size, "VALID", dtype=dtype, name="to_tokens")(images)


class PatchToPixels(nn.Module):
    """A transposed convolution whose stride is its size: a linear map from each token to its patch.

    Attributes:
      patch_size: Height and width of a patch in pixels.
      channels: Channels of the images.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> PatchToPixels(8, 3).init_with_output(jax.random.key(0), jnp.ones((1, 4, 2, 5)))[0].shape
      (1, 32, 16, 3)
    """

    patch_size: int
    channels: int

    @automatic_axes
    @nn.compact
    def __call__(self, x: Float[Array, "*batch rows columns _"]) -> Float[Array, "*batch _ _ _"]:
        *batch, rows, columns, dim = x.shape
        shape = (dim, self.patch_size, self.patch_size, self.channels)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2, 3)), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        pixels = jnp.einsum("...rcd,duvo->...rucvo", x, kernel)
        pixels = pixels.reshape(*batch, rows * self.patch_size, columns * self.patch_size, self.channels)
        return pixels + jnp.expand_dims(bias, range(x.ndim - 1))


class _Transformer(nn.Module):
    """Positions, blocks of attention and two-layer networks behind a norm each, and a last norm."""

    depth: int
    heads: int
    mlp_dim: int
    remat: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, rows, columns, dim = x.shape
        x = x.astype(jnp.float32) + positions(rows, columns, dim)[None]
        x = x.reshape(batch, rows * columns, dim)
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(self.depth):
            x = block(self.heads, self.mlp_dim, self.dtype, name=f"block_{i}")(x)
        return _norm("norm")(x).reshape(batch, rows, columns, dim)


def _transformer(module: _ViT) -> _Transformer:
    return _Transformer(module.depth, module.heads, module.mlp_dim, module.remat, module.dtype, name="transformer")


class TransformerBlock(nn.Module):
    """Attention, then a two-layer network, each behind a norm and added to its input.

    Attributes:
      heads: Heads of the attention, of 64 features each.
      mlp_dim: Hidden features of the two-layer network.
      dtype: Dtype of all layers but norms; parameters are float32.
      activation: Of the two-layer network; ViT-VQGAN has a hyperbolic tangent.
    """

    heads: int
    mlp_dim: int
    dtype: DTypeLike | None = None
    activation: Callable[[Array], Array] = nn.tanh

    @nn.compact
    def __call__(self, x: Float[Array, "batch positions dim"]) -> Float[Array, "batch positions dim"]:
        inner = self.heads * HEAD_DIM
        projected = dense(3 * inner, use_bias=False, dtype=self.dtype, name="qkv")(_norm("norm_1")(x))
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, HEAD_DIM) for part in jnp.split(projected, 3, axis=-1)
        )
        attended = jax.nn.dot_product_attention(query, key, value).reshape(*x.shape[:2], inner)
        if (self.heads, HEAD_DIM) != (1, x.shape[-1]):
            attended = dense(x.shape[-1], dtype=self.dtype, name="out")(attended)
        x = x + attended
        hidden = self.activation(dense(self.mlp_dim, dtype=self.dtype, name="mlp_1")(_norm("norm_2")(x)))
        return x + dense(x.shape[-1], dtype=self.dtype, name="mlp_2")(hidden)


def positions(rows: int, columns: int, dim: int) -> Float[np.ndarray, "rows columns dim"]:
    r"""Return a fixed embedding of the positions of a grid.

    The first half of the features depends on the column, the second on the row. Each holds
    :math:`\sin(p\,\omega_k)`, then :math:`\cos(p\,\omega_k)`, with :math:`\omega_k = 10000^{-k/(dim/4)}`.

    Args:
      rows: Rows of the grid.
      columns: Columns of the grid.
      dim: Features; a multiple of 4.

    Returns:
      float32 values in [-1, 1].

    Raises:
      UserError: ``dim`` is not a multiple of 4.

    Example:
      >>> print(positions(1, 2, 4)[0].round(3))
      [[0.    1.    0.    1.   ]
       [0.841 0.54  0.    1.   ]]
    """
    if dim % 4:
        raise UserError(f"dim must be a multiple of 4, got {dim}.")
    frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))

    def along(count: int) -> Float[np.ndarray, "count half"]:
        angles = np.arange(count)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    by_column = np.broadcast_to(along(columns)[None], (rows, columns, dim // 2))
    by_row = np.broadcast_to(along(rows)[:, None], (rows, columns, dim // 2))
    return np.concatenate([by_column, by_row], axis=-1).astype(np.float32)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)
