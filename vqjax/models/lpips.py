"""LPIPS: how different two images look to a network that was trained on something else."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vqjax.errors import UserError
from vqjax.models.feature_discriminator import FrozenNetwork
from vqjax.models.features import VGG16

Images = Float[Array, "batch height width channels"]
Features = Float[Array, "batch ... _"]  # of a layer, each with its own size

_EPSILON = 1e-10


def perceptual_distance(
    x: Sequence[Features], y: Sequence[Features], weights: Sequence[Float[Array, " _"]]
) -> Float[Array, " batch"]:
    r"""Compute the distance of LPIPS between the features of two images.

    .. math:: d = \sum_l \mathrm{mean}_{ij} \sum_c w_{lc} (\hat x_{lijc} - \hat y_{lijc})^2,\quad
      \hat x = x / (|x| + \epsilon)

    The gradient at a place where all features are zero is zero; in the original it is NaN.

    Args:
      x: Features of the layers of one batch of images.
      y: Those of another.
      weights: One weight per feature, for each layer.

    Returns:
      A distance per image, 0 for equal features.

    Example:
      >>> x, y = jnp.array([[[[3.0, 4.0]]]]), jnp.array([[[[4.0, 3.0]]]])
      >>> print(perceptual_distance([x], [y], [jnp.ones(2)]).round(4))
      [0.08]

    Source: Zhang et al., 2018 (arXiv 1801.03924).
    """
    distance = jnp.zeros(x[0].shape[0], jnp.float32)
    for of_x, of_y, weight in zip(x, y, weights, strict=True):
        squares = jnp.square(_unit(of_x) - _unit(of_y))
        of_positions = jnp.sum(jnp.expand_dims(weight, tuple(range(squares.ndim - 1))) * squares, axis=-1)
        distance += jnp.mean(of_positions, axis=tuple(range(1, of_positions.ndim)))
    return distance


def _unit(features: Features) -> Features:
    features = features.astype(jnp.float32)
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    # Double `where`: the slope of the root at zero is infinite.
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, features / (norm + _EPSILON), 0.0)


class LPIPS(nn.Module):
    """The learned perceptual distance of two images.

    With trained variables, such as :func:`load_lpips` reads them, it is LPIPS 0.1. The weights of a network
    that is new are one, which is the distance before it is learned. There is no dropout, neither here nor in training.

    Attributes:
      network: A module that maps images in [-1, 1] to the features of several layers: :class:`vqjax.models.VGG16`, the
        usual loss, :class:`vqjax.models.AlexNet`, the usual metric, or any other; see :func:`unlearned_lpips`.

    Example:
      >>> import jax
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> distance, variables = jax.eval_shape(LPIPS().init_with_output, jax.random.key(0), images, images)
      >>> distance.shape, variables["params"]["weight_4"].shape
      ((2,), (512,))

    Source: Zhang et al., 2018 (arXiv 1801.03924).
    """

    network: nn.Module = VGG16()

    @nn.compact
    def __call__(self, x: Images, y: Images) -> Float[Array, " batch"]:
        """Return the distance of each pair of images in [-1, 1].

        Raises:
          UserError: The two are not images of one shape, or not such as the network takes.
        """
        if x.shape != y.shape:
            raise UserError(
                f"`x` and `y` must have one shape, got {x.shape} and {y.shape}; compare images of one size."
            )
        of_x, of_y = self.network(x), self.network(y)
        weights = [
            self.param(f"weight_{layer}", nn.initializers.ones, (features.shape[-1],), jnp.float32)
            for layer, features in enumerate(of_x)
        ]
        return perceptual_distance(of_x, of_y, weights)


def unlearned_lpips(network: FrozenNetwork, side: int = 64) -> tuple[LPIPS, dict[str, PyTree]]:
    """Return LPIPS over a trained network, with weights of one.

    Args:
      network: The network with its variables.
      side: Height and width of images that it takes, in pixels.

    Returns:
      The module, and its variables.

    Raises:
      UserError: The network does not return features of layers.

    Example:
      >>> import jax
      >>> from vqjax.models import AlexNet
      >>> images = jnp.zeros((2, 64, 64, 3))
      >>> network = FrozenNetwork(AlexNet(), AlexNet().init(jax.random.key(0), images))
      >>> distance, variables = unlearned_lpips(network)
      >>> distance.apply(variables, images, images).tolist()
      [0.0, 0.0]
    """
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    features = jax.eval_shape(network, network.variables, images)
    variables = {collection: {"network": tree} for collection, tree in network.variables.items()}
    weights = {f"weight_{layer}": jnp.ones(x.shape[-1]) for layer, x in enumerate(features)}
    return LPIPS(network.module), variables | {"params": variables["params"] | weights}
