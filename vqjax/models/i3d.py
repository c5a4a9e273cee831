"""I3D, the network of videos on which the Fréchet video distance is defined."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.models.layers import clips_conv

INPUT_SIZE = 224
"""Height and width for which the network was trained."""
SMALLEST_FRAMES = 9
"""Fewest frames of a clip: two are left of nine behind the last block, and the network takes the mean of two."""
CLASSES = 400
"""Classes of Kinetics-400."""

Clips = Float[Array, "batch _ _ _ _"]
"""Clips or feature maps, [batch, frames, height, width, channels]."""

_Size = tuple[int, int, int]

# Channels of the six convolutions of each block, between the poolings behind the stem.
_BLOCKS: tuple[dict[str, tuple[int, int, int, int, int, int]], ...] = (
    {"3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64)},
    {
        "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64),
        "4d": (128, 128, 256, 24, 64, 64),
        "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128),
    },
    {"5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128)},
)
_POOLINGS: tuple[tuple[_Size, _Size], ...] = (
    ((1, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (2, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
)


class I3DFeatures(NamedTuple):
    """Features of clips, means over time.

    Attributes:
      logits: Logits of the 400 classes of Kinetics, the features of the Fréchet video distance.
      pool: Means over positions behind the last block.
    """

    logits: Float[Array, "batch 400"]
    pool: Float[Array, "batch 1024"]


class I3D(nn.Module):
    """Inception V1 with convolutions inflated to three axes, for colors (RGB) and the classes of Kinetics-400.

    The units have the names of pytorch-i3d; batch normalization is part of the convolutions.

    Raises:
      UserError: The clips do not have 224 x 224 pixels and three channels, or are shorter than nine frames.

    Example:
      >>> import jax
      >>> clips = jnp.zeros((2, 16, 224, 224, 3))
      >>> features, _ = jax.eval_shape(I3D().init_with_output, jax.random.key(0), clips)
      >>> features.logits.shape, features.pool.shape
      ((2, 400), (2, 1024))

    Source: Carreira and Zisserman, 2017 (arXiv 1705.07750); pytorch-i3d, ``pytorch_i3d.py``.
    """

    @nn.compact
    def __call__(self, clips: Clips) -> I3DFeatures:
        """Return the features of clips in [-1, 1]."""
        _check_clips(clips)
        x = _ConvUnit(64, (7, 7, 7), (2, 2, 2), name="Conv3d_1a_7x7")(clips)
        x = _largest(x, (1, 3, 3), (1, 2, 2))
        x = _ConvUnit(64, name="Conv3d_2b_1x1")(x)
        x = _ConvUnit(192, (3, 3, 3), name="Conv3d_2c_3x3")(x)
        for (size, strides), blocks in zip(_POOLINGS, _BLOCKS, strict=True):
            x = _largest(x, size, strides)
            for name, channels in blocks.items():
                x = _Block(channels, name=f"Mixed_{name}")(x)
        # Logits are linear: the mean over time of theirs is that of the mean.
        # Flax divides by an integer, which strict promotion of dtypes refuses.
        pool = nn.pool(x, 0.0, jax.lax.add, (2, 7, 7), (1, 1, 1), "VALID") / (2.0 * 7 * 7)
        pool = jnp.mean(pool, axis=1, keepdims=True)
        logits = nn.Conv(CLASSES, (1, 1, 1), precision="highest", name="logits")(pool)
        return I3DFeatures(logits.reshape(-1, CLASSES), pool.reshape(-1, pool.shape[-1]))


def _check_clips(clips: Clips) -> None:
    """Refuse what is not a batch of clips as the network was trained on."""
    if not jnp.issubdtype(clips.dtype, jnp.floating):
        raise UserError(f"`clips` must be floats in [-1, 1], got {clips.dtype}; scale uint8 with x / 127.5 - 1.")
    if clips.ndim != 5 or clips.shape[1] < SMALLEST_FRAMES or clips.shape[2:] != (INPUT_SIZE, INPUT_SIZE, 3):
        raise UserError(
            f"`clips` must be [batch, frames, {INPUT_SIZE}, {INPUT_SIZE}, 3] with at least {SMALLEST_FRAMES} frames, "
            f"got shape {clips.shape}; resize frames, and take longer clips."
        )


class _ConvUnit(nn.Module):
    """A convolution and a ReLU."""

    channels: int
    size: _Size = (1, 1, 1)
    strides: _Size = (1, 1, 1)

    @nn.compact
    def __call__(self, x: Clips) -> Clips:
        # Distances are compared between machines, which products of 10 bits would tell apart.
        conv = clips_conv(self.channels, self.size, strides=self.strides, precision="highest", name="conv3d")
        return nn.relu(conv(x))


def _largest(x: Clips, size: _Size, strides: _Size) -> Clips:
    return nn.max_pool(x, size, strides, padding="SAME")


class _Block(nn.Module):
    """Four branches side by side."""

    channels: tuple[int, int, int, int, int, int]

    @nn.compact
    def __call__(self, x: Clips) -> Clips:
        c0, c1a, c1b, c2a, c2b, c3b = self.channels
        branches = [
            _ConvUnit(c0, name="b0")(x),
            _ConvUnit(c1b, (3, 3, 3), name="b1b")(_ConvUnit(c1a, name="b1a")(x)),
            _ConvUnit(c2b, (3, 3, 3), name="b2b")(_ConvUnit(c2a, name="b2a")(x)),
            _ConvUnit(c3b, name="b3b")(_largest(x, (3, 3, 3), (1, 1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)
