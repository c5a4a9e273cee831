"""Distance of images by the features of a network that was trained here."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from studies.features.weights import DIRECTORY, load_network
from vqjax.data import to_model_range
from vqjax.evaluation.metric import ImageMean, Outputs
from vqjax.models.lpips import perceptual_distance

Images = Float[Array, "batch height width 3"]
Distance = Callable[[Images, Images], Float[Array, " batch"]]


def feature_distance(name: str = "cifar10", directory: Path = DIRECTORY) -> Distance:
    """Return the distance of LPIPS over a network that was trained here, with all weights of features one.

    Numbers of different networks are not comparable, nor are those of LPIPS.

    Args:
      name: Name of the network, as for :func:`studies.features.weights.load_network`.
      directory: Directory of its weights and of its record.

    Returns:
      A compiled function of two batches of images in [-1, 1], such as originals and reconstructions: a distance per
      pair, 0 but for rounding for equal images, and at most 2 for each level of the network.

    Raises:
      UserError: As :func:`studies.features.weights.load_network`.

    Example:
      >>> white = jnp.ones((1, 32, 32, 3))
      >>> distance = feature_distance()
      >>> bool(distance(white, white)[0] < 1e-9), bool(distance(white, -white)[0] > 0.1)
      (True, True)
    """
    network = load_network(name, directory)
    return functools.partial(_distance, network.module, network.variables)


@jax.jit(static_argnames="module")
def _distance(module: nn.Module, variables: dict[str, Any], x: Images, y: Images) -> Float[Array, " batch"]:
    of_x, of_y = (module.apply(variables, images) for images in (x, y))
    return perceptual_distance(of_x, of_y, [jnp.ones(features.shape[-1]) for features in of_x])


class FeatureDistance(ImageMean):
    """Mean distance of images and reconstructions by a feature network, a metric for :func:`vqjax.evaluation.evaluate`.

    Attributes:
      module: Network that maps images in [-1, 1] to feature maps of several levels.
      variables: Its variables.
      name: Name of the network, for the protocol.

    Example:
      >>> metric = FeatureDistance.of("cifar10")
      >>> black = {"image": jnp.zeros((1, 32, 32, 3), jnp.uint8), "reconstruction": -jnp.ones((1, 32, 32, 3))}
      >>> bool(metric.per_image(black)["feature_distance"][0] < 1e-9)
      True
    """

    module: nn.Module = flax.struct.field(pytree_node=False)
    variables: dict[str, Any]
    name: str = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, name: str = "cifar10", directory: Path = DIRECTORY) -> "FeatureDistance":
        """Return the metric of a trained network; see :func:`feature_distance`."""
        network = load_network(name, directory)
        return cls(network.module, network.variables, name)

    @property
    def protocol(self) -> dict[str, str]:
        distance = f"LPIPS distance without learned weights, over a ResNet trained on {self.name}"
        return {"feature_distance": f"{distance}; pixels clipped to [-1, 1], mean over images"}

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        images, reconstruction = to_model_range(outputs["image"]), jnp.clip(outputs["reconstruction"], -1, 1)
        return {"feature_distance": _distance(self.module, self.variables, images, reconstruction)}
