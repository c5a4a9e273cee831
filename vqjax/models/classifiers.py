"""Classifiers with quantizers between their layers: ResNet-18, AlexNet and ViT."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError, did_you_mean
from vqjax.models.layers import LARGEST_DIM, DownsamplingConv, Images, check_dtype, check_images, pointwise_conv
from vqjax.models.vit import TransformerBlock, positions, to_tokens
from vqjax.quantizers.base import QuantizerOutput, register_export, short_repr
from vqjax.quantizers.validation import is_fraction, require, require_choice, require_count

LARGEST_CLASSES = 2**20


@flax.struct.dataclass
class ClassifierOutput:
    """Output of one pass through a classifier.

    Attributes:
      logits: float32 scores of the classes, ``[batch, classes]``.
      features: Input of the last layer, one vector for each image.
      latents: Features at each place, before its quantizer, if there is one.
      quantizers: Outputs of the quantizers by place.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"]
    latents: dict[str, Float[Array, "batch *grid dim"]]
    quantizers: dict[str, QuantizerOutput]

    def __repr__(self) -> str:
        return short_repr(self)


register_export(ClassifierOutput)


class Classifier(nn.Module, abc.ABC):
    """Base class of classifiers, whose layers have places where features can be replaced by codes.

    A subclass names its places, and lets its features pass them in its call: where there is a quantizer, codes go on.

    Attributes:
      num_classes: Number of classes.
      quantizers: Quantizers by place; with none, the network is the ordinary one.
      dtype: Dtype of the layers, such as ``"bfloat16"``; parameters, norms, quantizers and logits are float32.

    Raises:
      UserError: A number is out of range, or there is no such place.
    """

    num_classes: int = 10
    quantizers: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("num_classes", self.num_classes, largest=LARGEST_CLASSES, smallest=2)
        check_dtype(self.dtype)
        for place in self.quantizers:
            if place not in self.places:
                name, hint = type(self).__name__, did_you_mean(place, self.places)
                raise UserError(f"quantizers must be at places of {name}, got {place!r}; {hint}")

    @property
    @abc.abstractmethod
    def places(self) -> tuple[str, ...]:
        """Names of the places, from the first to the last."""

    def quantizer_at(self, place: str, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        """Return the quantizer at a place, apart from the network, and its own variables.

        Args:
          place: The place.
          variables: Variables of the network, by collection.
        """
        name = name_at(place)
        own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        return self.quantizers[place].clone(parent=None, name=None), own

    def check_call(self, images: Images, train: bool | None) -> bool:
        """Refuse what is no batch of images, and calls that do not say whether they train, which batch norms need.

        Args:
          images: The argument of the call.
          train: The argument of the call; False in ``init`` if it is not given.
        """
        check_images(images)
        if train is None and not self.is_initializing():
            raise UserError(f"train must be True or False for {type(self).__name__}, got None; say which.")
        return bool(train)


def name_at(place: str) -> str:
    """Return the name under which Flax keeps the variables of the quantizer at a place.

    Args:
      place: The place.
    """
    return f"quantizers_{place}"


class _Quantized:
    """What the quantizers of one call get and return, as features pass by."""

    def __init__(self, classifier: Classifier, mask: Bool[Array, " batch"] | None, train: bool) -> None:
        self._quantizers, self._mask, self._train = classifier.quantizers, mask, train
        self._latents: dict[str, Array] = {}
        self._outputs: dict[str, QuantizerOutput] = {}

    def __call__(self, place: str, x: Float[Array, "batch *grid dim"]) -> Float[Array, "batch *grid dim"]:
        """Return the codes of features, or the features, where there is no quantizer."""
        self._latents[place] = x
        if place not in self._quantizers:
            return x
        mask = self._mask
        if mask is not None:
            mask = jnp.broadcast_to(jnp.expand_dims(mask, range(1, x.ndim - 1)), x.shape[:-1])
        self._outputs[place] = self._quantizers[place](x, mask, train=self._train)
        return self._outputs[place].quantized

    def output(self, features: Float[Array, "batch features"], last: nn.Module) -> ClassifierOutput:
        features = features.astype(jnp.float32)
        return ClassifierOutput(last(features), features, self._latents, self._outputs)


class FeaturesAtPlaces(nn.Module):
    """The features of a trained classifier at all its places, for a perceptual loss or a discriminator.

    Attributes:
      classifier: The classifier; its variables are those of this module under the name ``classifier``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network = FeaturesAtPlaces(ResNet18(width=8))
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> features, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
      >>> [of_place.shape for of_place in features]
      [(2, 32, 32, 8), (2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 64)]
    """

    classifier: Classifier

    def __call__(self, images: Images) -> tuple[Float[Array, "batch *positions _"], ...]:
        """Return the features of images in [-1, 1], from the first place to the last."""
        latents = self.classifier(images, train=False).latents
        return tuple(latents[place] for place in self.classifier.places)


class ResNet18(Classifier):
    """ResNet-18, with places behind each of its four stages: ``stage_1`` to ``stage_4``.

    Convolutions of stride 2 have padding 1 on all sides, as in PyTorch.

    Variables:
      ``params``, the running averages of batch norms in ``batch_stats``, and those of the quantizers.

    Attributes:
      stem: ``"imagenet"``: a 7x7 convolution and a max pool, each of stride 2; ``"cifar"``: one 3x3 convolution.
      width: Channels of the first stage; each further stage has twice as many.

    Raises:
      UserError: A size is out of range, or there is no such place.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vqjax import VectorQuantizer
      >>> network = ResNet18(width=8, quantizers={"stage_2": VectorQuantizer(num_codes=16)})
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> output, variables = jax.jit(network.init_with_output)(jax.random.key(0), images)
      >>> output.logits.shape, output.latents["stage_2"].shape, sorted(variables)
      ((2, 10), (2, 16, 16, 16), ['batch_stats', 'codebook', 'params'])

    Source: He et al., 2016 (arXiv 1512.03385).
    """

    stem: str = "cifar"
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("stem", self.stem, ("cifar", "imagenet"))
        require_count("width", self.width, largest=LARGEST_DIM)

    @property
    def places(self) -> tuple[str, ...]:
        return ("stage_1", "stage_2", "stage_3", "stage_4")

    @nn.compact
    def __call__(
        self, images: Images, mask: Bool[Array, " batch"] | None = None, *, train: bool | None = None
    ) -> ClassifierOutput:
        """Classify images.

        Args:
          images: Images in [-1, 1].
          mask: True for images that the quantizers' losses and statistics include; all by default.
          train: Whether batch norms use and average the batch, and codebooks learn.
        """
        train = self.check_call(images, train)
        quantize = _Quantized(self, mask, train)

        def norm(x: Images, name: str, start: float = 1.0) -> Images:
            scale = nn.initializers.constant(start)
            return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, scale_init=scale, name=name)(x)

        def conv(channels: int, size: int, name: str, strides: int = 1) -> nn.Module:
            options = {"use_bias": False, "dtype": self.dtype, "name": name}
            if (size, strides) == (3, 2):
                return DownsamplingConv(channels, kernel_size=3, **options)
            options["kernel_init"] = _HE
            if size == 1:
                return pointwise_conv(channels, **options)
            return nn.Conv(channels, (size, size), strides, size // 2, **options)

        if self.stem == "imagenet":
            x = nn.relu(norm(conv(self.width, 7, "stem_conv", strides=2)(images), "stem_norm"))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = nn.relu(norm(conv(self.width, 3, "stem_conv")(images), "stem_norm"))
        for stage in range(4):
            channels = self.width * 2**stage
            for block in range(2):
                strides = 2 if stage > 0 and block == 0 else 1
                name, shortcut = f"stage_{stage + 1}_block_{block + 1}", x
                y = nn.relu(norm(conv(channels, 3, f"{name}_conv_1", strides)(x), f"{name}_norm_1"))
                # Blocks begin as their shortcuts (Goyal et al., 2017).
                y = norm(conv(channels, 3, f"{name}_conv_2")(y), f"{name}_norm_2", start=0.0)
                if strides == 2:
                    shortcut = conv(channels, 1, f"{name}_shortcut_conv")(x[:, ::2, ::2])
                    shortcut = norm(shortcut, f"{name}_shortcut_norm")
                x = nn.relu(y + shortcut)
            x = quantize(f"stage_{stage + 1}", x)
        return quantize.output(jnp.mean(x, axis=(1, 2)), nn.Dense(self.num_classes, name="logits"))


_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ClassifyingAlexNet(Classifier):
    """AlexNet, with places behind each of its five convolutions: ``conv_1`` to ``conv_5``.

    Attributes:
      stem: ``"imagenet"``: an 11x11 convolution of stride 4; ``"cifar"``: a 3x3 convolution of stride 2, and windows of
        2 pixels in the max pools, for images of 32 pixels.
      hidden: Features of the two hidden layers behind the convolutions.
      dropout: Rate of dropout in front of these; None for none.

    Raises:
      UserError: A size is out of range, or there is no such place.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network = ClassifyingAlexNet(hidden=32)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> jax.jit(network.init_with_output)(jax.random.key(0), images)[0].logits.shape
      (2, 10)

    Source: Krizhevsky, 2014 (arXiv 1404.5997).
    """

    stem: str = "cifar"
    hidden: int = 4096
    dropout: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("stem", self.stem, ("cifar", "imagenet"))
        require_count("hidden", self.hidden, largest=2**16)
        require(self.dropout is None or is_fraction(self.dropout), "dropout", self.dropout, "in [0, 1), or None")

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(f"conv_{number}" for number in range(1, 6))

    @nn.compact
    def __call__(
        self, images: Images, mask: Bool[Array, " batch"] | None = None, *, train: bool | None = None
    ) -> ClassifierOutput:
        """Classify images; see :meth:`ResNet18.__call__`."""
        train = self.check_call(images, train)
        quantize = _Quantized(self, mask, train)
        of_imagenet = self.stem == "imagenet"
        window = (3, 3) if of_imagenet else (2, 2)

        def conv(number: int, channels: int, size: int, strides: int = 1, padding: int | None = None) -> nn.Module:
            padding = size // 2 if padding is None else padding
            return nn.Conv(channels, (size, size), strides, padding, dtype=self.dtype, name=f"conv_{number}")

        if of_imagenet:
            x = conv(1, 64, 11, strides=4, padding=2)(images)
        else:
            x = DownsamplingConv(64, dtype=self.dtype, kernel_size=3, name="conv_1")(images)
        x = quantize("conv_1", nn.relu(x))
        for number, channels, size in ((2, 192, 5 if of_imagenet else 3), (3, 384, 3), (4, 256, 3), (5, 256, 3)):
            if number in (2, 3):
                x = nn.max_pool(x, window, strides=(2, 2))
            x = quantize(f"conv_{number}", nn.relu(conv(number, channels, size)(x)))
        x = nn.max_pool(x, window, strides=(2, 2))
        if x.size == 0:
            smallest = 63 if of_imagenet else 16
            raise UserError(f"images must be at least {smallest} pixels high and wide, got shape {images.shape}.")
        x = x.reshape(len(x), -1)
        for number in (1, 2):
            if self.dropout is not None:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=f"hidden_{number}")(x))
        return quantize.output(x, nn.Dense(self.num_classes, name="logits"))


class ViT(Classifier):
    """A vision transformer over a grid of patches, with places behind each block: ``block_1`` and so on.

    Positions are fixed, and the last features are averaged over the grid.

    Attributes:
      patch_size: Height and width of a patch in pixels.
      dim: Features of a token.
      depth: Number of blocks.
      heads: Heads of the attention, of 64 features each.
      mlp_dim: Hidden features of the two-layer networks.

    Raises:
      UserError: A size is out of range, or there is no such place.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network = ViT(dim=64, depth=2, heads=1, mlp_dim=128)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> jax.jit(network.init_with_output)(jax.random.key(0), images)[0].logits.shape, network.places
      ((2, 10), ('block_1', 'block_2'))

    Source: Dosovitskiy et al., 2021 (arXiv 2010.11929); averages and positions as in Beyer et al., 2022
    (arXiv 2205.01580).
    """

    patch_size: int = 4
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_dim: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "dim", "depth", "heads", "mlp_dim"):
            require_count(name, getattr(self, name), largest=LARGEST_DIM)

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(f"block_{number}" for number in range(1, self.depth + 1))

    @nn.compact
    def __call__(
        self, images: Images, mask: Bool[Array, " batch"] | None = None, *, train: bool | None = None
    ) -> ClassifierOutput:
        """Classify images; see :meth:`ResNet18.__call__`."""
        train = self.check_call(images, train)
        quantize = _Quantized(self, mask, train)
        x = to_tokens(images, self.patch_size, self.dim, self.dtype)
        batch, rows, columns, _ = x.shape
        x = (x.astype(jnp.float32) + positions(rows, columns, self.dim)[None]).reshape(batch, -1, self.dim)
        for number in range(1, self.depth + 1):
            block = TransformerBlock(self.heads, self.mlp_dim, self.dtype, nn.gelu, name=f"block_{number}")
            x = quantize(f"block_{number}", block(x))
        x = nn.LayerNorm(1e-5, use_fast_variance=False, dtype=jnp.float32, name="norm")(x)
        return quantize.output(jnp.mean(x, axis=1), nn.Dense(self.num_classes, name="logits"))
