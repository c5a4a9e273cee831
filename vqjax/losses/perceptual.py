"""LPIPS: how different two images look to a network that was trained on something else."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vqjax.errors import UserError
from vqjax.importing.features import load_features, with_torchvision_names
from vqjax.importing.state_dict import Entry, read_params, read_state_dict
from vqjax.models.features import VGG16

Images = Float[Array, "batch height width channels"]
Features = Float[Array, "batch _ _ _"]  # of a layer, each with its own size

_EPSILON = 1e-10
# The heads appear twice in the files of the package lpips.
_LEFT_OUT = re.compile(r"^(scaling_layer\.|lins\.|classifier\.)")
_ADVICE = "pass the state dict of LPIPS 0.1 with net='vgg' or net='alex'"


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
        distance += jnp.mean(jnp.sum(weight[None, None, None] * squares, axis=-1), axis=(1, 2))
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
      network: A module that maps images in [-1, 1] to feature maps of several layers: :class:`vqjax.models.VGG16`, the
        usual loss, :class:`vqjax.models.AlexNet`, the usual metric, or any other.

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


@dataclasses.dataclass(frozen=True, eq=False)
class PerceptualLoss:
    """A perceptual distance with its variables, as a term of a loss.

    Attributes:
      module: A module that maps two batches of images in [-1, 1] to a distance per image, such as :class:`LPIPS`.
      variables: Its variables, which training does not change.
      weight: Weight of the mean distance in the loss.

    Raises:
      UserError: The weight is not above zero.
    """

    module: nn.Module
    variables: PyTree[Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be above 0, got {self.weight}; leave the perceptual loss out for none.")


def load_lpips(arrays: Mapping[str, Any] | str | os.PathLike) -> tuple[LPIPS, dict[str, Any]]:
    """Turn LPIPS 0.1 of PyTorch into a module and its variables.

    Args:
      arrays: The state dict, or the path of a ``.safetensors`` file, of one of these: ``LPIPS`` of the package lpips,
        with ``net="vgg"`` or ``"alex"``; a tokenizer that was trained with it, such as a ``VQModel`` of
        taming-transformers; or torchvision's ``vgg16`` or ``alexnet`` together with the heads that the package holds,
        ``torchvision_state_dict | heads_state_dict``.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite.

    Source: PerceptualSimilarity, ``lpips/lpips.py``; taming-transformers, ``taming/modules/losses/lpips.py``.
    """
    arrays = with_torchvision_names(read_state_dict(arrays))
    if "features.0.weight" not in arrays or "lin0.model.1.weight" not in arrays:
        raise UserError(
            "arrays must have the entries features.0.weight or net.slice1.0.weight, and lin0.model.1.weight, got "
            f"{sorted(arrays)[:5]}; pass the state dict of LPIPS, or those of the network and of its heads together."
        )
    known = {key: value for key, value in arrays.items() if not _LEFT_OUT.match(key)}
    if surplus := sorted(key for key in known if not key.startswith(("features.", "lin"))):
        raise UserError(f"arrays must have the entries of this model, got surplus {surplus}; {_ADVICE}.")
    network, variables = load_features(known)
    module = LPIPS(network)
    images = jnp.zeros((1, 64, 64, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images, images)["params"]
    # Convolutions of 1x1 to one channel there: [1, features, 1, 1].
    heads = {key: _head(value) for key, value in known.items() if key.startswith("lin")}
    weights = {name: leaf for name, leaf in like.items() if name != "network"}
    params = read_params(heads, weights, _entry_of, _ADVICE)
    return module, {"params": {"network": variables["params"], **params}}


def _head(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(-1) if weight.shape[2:] == (1, 1) else weight


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    del num_axes
    return Entry(f"lin{path[0].removeprefix('weight_')}.model.1.weight", (0,))
