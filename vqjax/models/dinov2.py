"""DINOv2, a vision transformer whose features tell generated images from real ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.models.features import imagenet_normalized
from vqjax.models.layers import Images
from vqjax.models.vit import HEAD_DIM
from vqjax.quantizers.sharding import automatic_axes

INPUT_SIZE = 224
"""Height and width of the images in the published distances."""
PATCH_SIZE = 14
GRID = INPUT_SIZE // PATCH_SIZE
"""Patches along each side."""

Tokens = Float[Array, "batch _ dim"]


class DINOv2(nn.Module):
    """The small, base or large network of DINOv2, whose feature of an image is its class token behind the last norm.

    Attributes:
      dim: Features of a token, a multiple of 64: 384 for small, 768 for base, 1024 for large.
      depth: Number of transformer blocks: 12, or 24 for large.
      registers: Number of register tokens; 4 in the networks that have them.

    Raises:
      UserError: The images do not have 224 x 224 pixels and three channels.

    Example:
      >>> images = jnp.zeros((2, 224, 224, 3))
      >>> jax.eval_shape(DINOv2(depth=1).init_with_output, jax.random.key(0), images)[0].shape
      (2, 384)

    Source: Oquab et al., 2023 (arXiv 2304.07193); Darcet et al., 2024, for registers (arXiv 2309.16588).
    """

    dim: int = 384
    depth: int = 12
    registers: int = 0

    # Distances are compared between machines, which products of 10 bits would tell apart.
    @automatic_axes
    @jax.default_matmul_precision("highest")
    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "batch dim"]:
        """Return the features of images in [-1, 1]."""
        x = imagenet_normalized(images, smallest=PATCH_SIZE)
        if images.shape[1:3] != (INPUT_SIZE, INPUT_SIZE):
            raise UserError(
                f"images must have {INPUT_SIZE} x {INPUT_SIZE} pixels, got shape {images.shape}; resize them."
            )
        patches = (PATCH_SIZE, PATCH_SIZE)
        x = nn.Conv(self.dim, patches, patches, "VALID", name="patch_embed")(x)
        x = x.reshape(x.shape[0], GRID * GRID, self.dim)
        x = jnp.concatenate([self._repeated("cls_token", 1, x), x], axis=1) + self._tokens("pos_embed", GRID * GRID + 1)
        if self.registers:
            # Registers have no place in the image.
            registers = self._repeated("register_tokens", self.registers, x)
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        for i in range(self.depth):
            x = _Block(name=f"blocks_{i}")(x)
        return _norm("norm")(x[:, 0])

    def _tokens(self, name: str, count: int) -> Float[Array, "1 count dim"]:
        return self.param(name, nn.initializers.truncated_normal(0.02), (1, count, self.dim), jnp.float32)

    def _repeated(self, name: str, count: int, x: Tokens) -> Tokens:
        return jnp.broadcast_to(self._tokens(name, count), (x.shape[0], count, self.dim))


class _Block(nn.Module):
    """Attention, then a two-layer network, each with a scale for every feature, and added to its input."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, tokens, dim = x.shape
        projected = nn.Dense(3 * dim, name="qkv")(_norm("norm1")(x))
        query, key, value = jnp.split(projected.reshape(batch, tokens, 3 * dim // HEAD_DIM, HEAD_DIM), 3, axis=2)
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + self._scale("ls1", dim) * nn.Dense(dim, name="proj")(attended)
        hidden = nn.gelu(nn.Dense(4 * dim, name="fc1")(_norm("norm2")(x)), approximate=False)
        return x + self._scale("ls2", dim) * nn.Dense(dim, name="fc2")(hidden)

    def _scale(self, name: str, dim: int) -> Float[Array, "1 1 dim"]:
        return self.param(name, nn.initializers.ones, (dim,), jnp.float32)[None, None]


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-6, use_fast_variance=False, name=name)
