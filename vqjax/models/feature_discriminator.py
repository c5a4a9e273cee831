"""Discriminator over the features of a frozen network, which present tokenizers train against."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vqjax.errors import UserError
from vqjax.models.layers import Images, check_dtype, check_images
from vqjax.quantizers.validation import require_count

FROZEN = "frozen"
"""Collection of what no optimizer and no step changes."""

Features = Float[Array, "batch *positions _"]
Logits = Float[Array, "batch logits"]

_SLOPE = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """A Flax network with variables that training does not change.

    Attributes:
      module: A module that maps images in [-1, 1] to the features of several layers, a tuple of
        ``[batch, *positions, features]``: feature maps, such as :class:`vqjax.models.VGG16` has, or the tokens of a
        transformer.
      variables: Its variables.
    """

    module: nn.Module
    variables: PyTree[Any]

    def __call__(self, variables: PyTree[Any], images: Images) -> Sequence[Features]:
        """Return the features of images, by variables that may be traced.

        Raises:
          UserError: The module returns something other than a tuple of features.
        """
        features = self.module.apply(variables, images)
        if not isinstance(features, tuple | list) or not features or min(x.ndim for x in features) < 3:
            found = jax.tree.map(jnp.shape, features)
            raise UserError(
                "network must return a tuple of [batch, *positions, features], one for each layer, got the shapes "
                f"{found}; return the features of a single layer as (features,)."
            )
        return features


class FeatureDiscriminator(nn.Module):
    """Heads that judge images by the features that a frozen network has of them.

    Each layer of the network has a head of its own: a linear layer and a convolution over nine neighbors, both with
    spectral norm and a norm over groups of images, and a linear layer to one logit per position. Layers that are finer
    than the coarsest are averaged down to about its grid, so that all layers have about as many logits. Gradients pass
    the network to the images.

    Variables:
      Those of the network are the collection ``frozen``; the heads have ``params``, and, for the spectral norm,
      ``batch_stats``.

    Attributes:
      network: The network with its variables.
      group_size: Smallest number of images, if a batch has that many, over which the heads normalize.
      dtype: Dtype of the heads, such as ``"bfloat16"``; parameters, norms and logits are float32.

    Raises:
      UserError: A size is out of range, or the network returns no features.

    Example:
      >>> from vqjax.models import AlexNet
      >>> network, images = AlexNet(), jnp.zeros((2, 32, 32, 3))
      >>> def judge(key):
      ...   frozen = FrozenNetwork(network, network.init(key, images))
      ...   return FeatureDiscriminator(frozen).init_with_output(key, images, train=True)
      >>> logits, variables = jax.eval_shape(judge, jax.random.key(0))
      >>> logits.shape, sorted(variables)
      ((2, 5), ['batch_stats', 'frozen', 'params'])

    Source: Sauer et al., 2023 (arXiv 2301.09515), whose network is a DINO ViT; without their augmentation.
    """

    network: FrozenNetwork
    group_size: int = 8
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("group_size", self.group_size)
        check_dtype(self.dtype)

    @property
    def frozen(self) -> dict[str, Any]:
        """The collection ``frozen``, as ``apply`` takes it."""
        return {FROZEN: {"network": jax.tree.map(jnp.asarray, self.network.variables)}}

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Logits:
        check_images(images)
        frozen = self.variable(FROZEN, "network", lambda: self.frozen[FROZEN]["network"])
        if self.is_initializing():
            # Initial values depend on shapes alone: a network that nothing needs is not compiled with its weights.
            shapes = jax.eval_shape(self.network, self.network.variables, images)
            features = [jnp.zeros(x.shape, x.dtype) for x in shapes]
        else:
            features = self.network(frozen.value, images)
        grids = [x.shape[1:-1] for x in features]
        logits = []
        for layer, (x, grid) in enumerate(zip(features, grids, strict=True)):
            coarsest = min((other for other in grids if len(other) == len(grid)), key=math.prod)
            window = tuple(max(1, size // smallest) for size, smallest in zip(grid, coarsest, strict=True))
            head = _Head(window, self.group_size, self.dtype, name=f"head_{layer}")
            logits.append(head(x, train).reshape(len(images), -1))
        return jnp.concatenate(logits, axis=1)


class _Head(nn.Module):
    """Features of a layer to one logit per position, averaged over windows first."""

    window: tuple[int, ...]
    group_size: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Float[Array, "batch *windows 1"]:
        channels, num_axes = x.shape[-1], x.ndim - 2

        def conv(features: int, size: int, dtype: DTypeLike | None, name: str, x: Array) -> Array:
            # Neighbors across the border are as good as zeros, which would give the border away.
            layer = nn.Conv(features, (size,) * num_axes, padding="CIRCULAR", dtype=dtype, name=name)
            return nn.SpectralNorm(layer, name=f"{name}_norm")(x, update_stats=train)

        def block(size: int, name: str, x: Array) -> Array:
            x = _GroupedBatchNorm(self.group_size, name=f"{name}_statistics")(conv(channels, size, self.dtype, name, x))
            return nn.leaky_relu(x, _SLOPE)

        x = block(1, "linear", x)
        if math.prod(self.window) > 1:
            x = nn.avg_pool(x, self.window, strides=self.window)
        # Nine neighbors in a sequence, and in a map.
        x = (x + block(9 if num_axes == 1 else 3, "neighbors", x)) / math.sqrt(2)
        return conv(1, 1, jnp.float32, "logit", x)


class _GroupedBatchNorm(nn.Module):
    """Batch normalization over groups of images, in training and evaluation alike."""

    group_size: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        groups = next(n for n in range(max(1, len(x) // self.group_size), 0, -1) if len(x) % n == 0)
        parts = x.astype(jnp.float32).reshape(groups, -1, channels)
        mean = jnp.mean(parts, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(parts - mean), axis=1, keepdims=True)
        normed = (parts - mean) * jax.lax.rsqrt(variance + 1e-5) * scale[None, None] + bias[None, None]
        return normed.reshape(x.shape).astype(x.dtype)
