"""Feature networks: torchvision's, also from files of networks that contain them, and those that are trained here."""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.importing.state_dict import Entry, StateDict, check_entries, read_params, read_state_dict
from vqjax.models.features import VGG16, AlexNet
from vqjax.models.resnet import ResNet

# Checkpoints of tokenizers hold LPIPS among their losses.
_PREFIXES = ("loss.perceptual_loss.", "perceptual_loss.")
# The convolutions of LPIPS have torchvision's numbers, in parts.
_SLICE = re.compile(r"^net\.slice\d\.(\d+)\.(weight|bias)$")
_FEATURES = re.compile(r"^features\.\d+\.(weight|bias)$")


def load_features(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[VGG16 | AlexNet, dict[str, Any]]:
    """Turn torchvision's ``vgg16`` or ``alexnet`` into a module and its variables.

    Args:
      arrays: The state dict, or the path of a ``.safetensors`` file, of one of the two, or of a network that contains
        one of them: LPIPS, or a tokenizer that was trained with it. All other entries are left out.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, of the wrong shape or not finite.

    Source: torchvision, ``models/vgg.py`` and ``models/alexnet.py``.
    """
    arrays = with_torchvision_names(read_state_dict(arrays))
    first = arrays.get("features.0.weight")
    if first is None:
        raise UserError(
            "arrays must have the entry features.0.weight or net.slice1.0.weight, got "
            f"{sorted(arrays)[:5]}; pass the state dict of torchvision's vgg16 or alexnet, or of LPIPS."
        )
    module = AlexNet() if first.shape[-1] == 11 else VGG16()
    images = jnp.zeros((1, 64, 64, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    features = {key: value for key, value in arrays.items() if _FEATURES.match(key)}
    advice = "pass the state dict of torchvision's vgg16 or alexnet, or of LPIPS 0.1 with net='vgg' or net='alex'"
    return module, {"params": read_params(features, like, _entry_of, advice)}


def load_resnet(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[ResNet, dict[str, Any]]:
    """Turn the variables of a residual network, by their dotted names, into a module and its variables.

    Args:
      arrays: The variables, or the path of a ``.safetensors`` file of them, as in ``studies/features``.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite.

    Example:
      >>> variables = ResNet((4, 8)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> load_resnet(flax.traverse_util.flatten_dict(jax.device_get(variables), sep="."))[0].channels
      (4, 8)
    """
    arrays = read_state_dict(arrays)
    # The bias of the last norm of each level, in order.
    norms = ("params.stem_norm.bias", *(f"params.block_{level}_first_norm.bias" for level in range(1, len(arrays))))
    channels = tuple(len(arrays[name]) for name in norms if name in arrays)
    advice = "pass the file of a network of studies/features"
    if not channels:
        raise UserError(f"arrays must have the entry params.stem_norm.bias, got {sorted(arrays)[:3]}; {advice}.")
    module = ResNet(channels)
    images = jnp.zeros((1, *2 * [2 ** len(channels)], 3), jnp.float32)
    like = flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images), sep=".")
    check_entries(arrays, {name: leaf.shape for name, leaf in like.items()}, advice)
    variables = {name: jnp.asarray(arrays[name], jnp.float32) for name in like}
    return module, flax.traverse_util.unflatten_dict(variables, sep=".")


def with_torchvision_names(arrays: StateDict) -> StateDict:
    """Return the entries of a perceptual loss, or those of a network alone, by torchvision's names.

    Args:
      arrays: Arrays by name.

    Example:
      >>> import numpy as np
      >>> sorted(with_torchvision_names({"loss.perceptual_loss.net.slice1.0.bias": np.zeros(64)}))
      ['features.0.bias']
    """
    for prefix in _PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        arrays = inner or arrays
    return {_SLICE.sub(r"features.\1.\2", key): value for key, value in arrays.items()}


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    number = path[-2].removeprefix("conv_")
    return Entry(f"features.{number}.bias", (0,)) if num_axes == 1 else Entry(f"features.{number}.weight", (3, 2, 0, 1))
