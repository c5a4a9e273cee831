"""The Inception network behind FID, the Inception score and their kin."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.models.features import check_color
from vqjax.models.layers import Images

INPUT_SIZE = 299
"""Height and width for which the network was trained."""

_STEM = (("1a", 32, 3, 2, "VALID"), ("2a", 32, 3, 1, "VALID"), ("2b", 64, 3, 1, "SAME"))
_SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """Features that metrics take from the network.

    Attributes:
      pool: Means over positions behind the last block, the features of FID and KID.
      logits: Logits of 1,008 classes without their bias, of the Inception score.
      spatial: Seven channels of a middle layer at 17 x 17 positions, of sFID.
    """

    pool: Float[Array, "batch 2048"]
    logits: Float[Array, "batch 1008"]
    spatial: Float[Array, "batch 2023"]


class FIDInception(nn.Module):
    """Inception V3 as TensorFlow's file of 2015 has it, on which FID, KID, sFID and the Inception score are defined.

    Four details differ from torchvision's ``inception_v3``: average pooling does not count the border, the last block
    pools by maximum, there are 1,008 classes, and pixels are in [-1, 1] as they are. The units have the names of
    torchvision and of pytorch-fid; batch normalization is part of the convolutions.

    Raises:
      UserError: The images are smaller than 75 pixels, or are not in color.

    Example:
      >>> import jax
      >>> images = jnp.zeros((2, 299, 299, 3))
      >>> features, _ = jax.eval_shape(FIDInception().init_with_output, jax.random.key(0), images)
      >>> features.pool.shape, features.spatial.shape
      ((2, 2048), (2, 2023))

    Source: Szegedy et al., 2016 (arXiv 1512.00567); Heusel et al., 2017 (arXiv 1706.08500); pytorch-fid,
    ``inception.py``.
    """

    @nn.compact
    def __call__(self, images: Images) -> InceptionFeatures:
        """Return the features of images in [-1, 1], which metrics resize to ``INPUT_SIZE`` before."""
        check_color(images, smallest=75)
        x = images
        for name, channels, size, strides, padding in _STEM:
            x = _ConvUnit(channels, (size, size), strides, padding, name=f"Conv2d_{name}_{size}x{size}")(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = _ConvUnit(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _ConvUnit(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = _Block35(pool_features, name=f"Mixed_{name}")(x)
        x = _Reduction17(name="Mixed_6a")(x)
        for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, first = _Block17(channels, name=f"Mixed_{name}")(x)
            if name == "6d":
                spatial = first[..., :_SPATIAL_CHANNELS]
        x = _Reduction8(name="Mixed_7a")(x)
        x = _Block8("average", name="Mixed_7b")(x)
        x = _Block8("max", name="Mixed_7c")(x)
        pool = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(1008, use_bias=False, precision="highest", name="fc")(pool)
        return InceptionFeatures(pool, logits, spatial.reshape(spatial.shape[0], -1))


class _ConvUnit(nn.Module):
    """A convolution and a ReLU."""

    channels: int
    size: tuple[int, int]
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Distances are compared between machines, which products of 10 bits would tell apart.
        conv = nn.Conv(self.channels, self.size, self.strides, self.padding, precision="highest", name="conv")
        return nn.relu(conv(x))


def _chain(x: Array, *units: tuple[str, int, tuple[int, int]]) -> Array:
    for name, channels, size in units:
        x = _ConvUnit(channels, size, name=name)(x)
    return x


def _average(x: Array) -> Array:
    # The number of pixels of a window is counted in the default dtype.
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False).astype(x.dtype)


def _joined(branches: Sequence[Array]) -> Array:
    return jnp.concatenate(branches, axis=-1)


class _Block35(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _joined(
            [
                _chain(x, ("branch1x1", 64, (1, 1))),
                _chain(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
                _chain(
                    x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))
                ),
                _chain(_average(x), ("branch_pool", self.pool_features, (1, 1))),
            ]
        )


class _Reduction17(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = _chain(x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)))
        return _joined(
            [
                _ConvUnit(384, (3, 3), 2, "VALID", name="branch3x3")(x),
                _ConvUnit(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double),
                nn.max_pool(x, (3, 3), strides=(2, 2)),
            ]
        )


class _Block17(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        c, first = self.channels, _chain(x, ("branch1x1", 192, (1, 1)))
        branches = [
            first,
            _chain(x, ("branch7x7_1", c, (1, 1)), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))),
            _chain(
                x,
                ("branch7x7dbl_1", c, (1, 1)),
                ("branch7x7dbl_2", c, (7, 1)),
                ("branch7x7dbl_3", c, (1, 7)),
                ("branch7x7dbl_4", c, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ),
            _chain(_average(x), ("branch_pool", 192, (1, 1))),
        ]
        return _joined(branches), first


class _Reduction8(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _chain(x, ("branch3x3_1", 192, (1, 1)))
        seven = _chain(
            x, ("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
        )
        return _joined(
            [
                _ConvUnit(320, (3, 3), 2, "VALID", name="branch3x3_2")(three),
                _ConvUnit(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven),
                nn.max_pool(x, (3, 3), strides=(2, 2)),
            ]
        )


class _Block8(nn.Module):
    pooling: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _chain(x, ("branch3x3_1", 384, (1, 1)))
        double = _chain(x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
        largest = self.pooling == "max"
        pooled = nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME") if largest else _average(x)
        return _joined(
            [
                _chain(x, ("branch1x1", 320, (1, 1))),
                *(_chain(three, (f"branch3x3_2{side}", 384, size)) for side, size in (("a", (1, 3)), ("b", (3, 1)))),
                *(
                    _chain(double, (f"branch3x3dbl_3{side}", 384, size))
                    for side, size in (("a", (1, 3)), ("b", (3, 1)))
                ),
                _chain(pooled, ("branch_pool", 192, (1, 1))),
            ]
        )
